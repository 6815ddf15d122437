"""Buffers of gradients, used again after the tensor that holds them is gone.

The gradient of a decoder is many MB. Asking the system for it in every step costs more than writing it: each page
is zeroed and mapped anew. A buffer here goes back to the pool when PyTorch frees the tensor's memory, whoever held
it, so it is never handed out twice at a time. The pool keeps at most KEPT_BYTES of unused ones.
"""

import weakref
from collections import defaultdict
from threading import Lock

import numpy as np
import torch
from torch import Tensor

POOLED_BYTES = 2**20  # smaller ones are left to PyTorch
KEPT_BYTES = 2**31
_free: dict[int, list[np.ndarray]] = defaultdict(list)
_lock = Lock()


def _give_back(raw: np.ndarray) -> None:
    if held() + raw.nbytes <= KEPT_BYTES:
        _free[raw.nbytes].append(raw)


def held() -> int:
    """Bytes of the unused buffers."""
    return sum(size * len(buffers) for size, buffers in list(_free.items()))


def clear() -> None:
    """Return the unused buffers to the system."""
    with _lock:
        _free.clear()


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """As `torch.empty` on the CPU, not initialised, from the pool."""
    size = int(np.prod(shape)) * dtype.itemsize
    if size < POOLED_BYTES:
        return torch.empty(shape, dtype=dtype)
    with _lock:
        if not _free[size] and held() + size > KEPT_BYTES:
            _free.clear()  # the sizes that are asked for now take the place of earlier ones
        raw = _free[size].pop() if _free[size] else np.empty(size, np.uint8)
    lease = raw[:]  # PyTorch keeps this view alive as long as any tensor uses its memory
    weakref.finalize(lease, _give_back, raw).atexit = False
    return torch.from_numpy(lease).view(dtype).view(shape)
