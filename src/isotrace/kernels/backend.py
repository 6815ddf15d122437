"""Which implementation of the kernels runs: plain PyTorch anywhere, Numba on CPUs that have it."""

from functools import cache
from importlib.util import find_spec
from typing import Literal

from torch import Tensor

from isotrace.base.errors import IsotraceError

Backend = Literal["auto", "torch", "numba"]


class MissingExtraError(IsotraceError, ImportError):
    """An optional dependency was asked for that is not installed. The message names the extra."""


@cache
def has_numba() -> bool:
    return find_spec("numba") is not None


def resolve(backend: Backend, tensor: Tensor) -> Literal["torch", "numba"]:
    """The backend that runs on `tensor` (a weight: its device decides). "auto" is Numba on the CPU where it is
    installed, else PyTorch.

    Raises MissingExtraError when Numba is asked for and absent, IsotraceError when it is asked for off the CPU, and
    ValueError for an unknown name.
    """
    if backend not in ("auto", "torch", "numba"):
        raise ValueError(f"unknown backend {backend!r}: 'auto', 'torch' or 'numba'")
    on_cpu = tensor.device.type == "cpu"
    if backend == "auto":
        return "numba" if on_cpu and has_numba() else "torch"
    if backend == "numba" and not has_numba():
        raise MissingExtraError(
            "the numba backend is not installed: pip install 'isotrace[fast]', or use backend='torch'."
        )
    if backend == "numba" and not on_cpu:
        raise IsotraceError(f"the numba backend runs on the CPU, not on {tensor.device}: use backend='torch'.")
    return backend
