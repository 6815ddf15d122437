"""A device that is not there, on a machine without one: tensors that say they lie on it, and compute on the CPU.

As on a GPU, an operation on tensors of two devices raises, but for 0-dimensional tensors of the CPU and for indices on
the CPU into a tensor of the device; a generator draws only where it is; NumPy takes none; what makes a tensor puts it
where it is told, which is the CPU when it is told nothing. So a whole command runs, its numbers must equal those of the
CPU, and a tensor made in the wrong place is found.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend


class Backend(_DummyBackendModule):
    """What PyTorch asks of every device from now on, in tests too that do not know of this one."""

    def get_rng_state(self, device: object = None) -> torch.Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, device: object = None) -> None:
        torch.set_rng_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


NAME = "pretended"
_setup_privateuseone_for_python_backend(NAME, Backend())
DEVICE = torch.device(NAME, 0)
aten = torch.ops.aten
MOVES = {aten._to_copy.default, aten.copy_.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default,
           aten._unsafe_index.Tensor, aten._unsafe_index_put.default}  # fmt: skip
JOINED = {aten.cat.default, aten.stack.default}


class Pretended(torch.Tensor):
    """`raw`: the tensor of the CPU that it stands for."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> "Pretended":
        made = torch.Tensor._make_wrapper_subclass(
            cls, raw.shape, strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=DEVICE
        )
        made.raw = raw
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    # PyTorch makes a tensor of a list of indices itself, which it cannot do on a device that is not there
    def __getitem__(self, index):
        return super().__getitem__(_listed(index))

    def __setitem__(self, index, value):
        super().__setitem__(_listed(index), value)

    def tolist(self):  # PyTorch refuses it to subclasses, not to devices
        return self.raw.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.raw!r} on {NAME}"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def _listed(index):
    if isinstance(index, tuple):
        return tuple(_listed(one) for one in index)
    return torch.tensor(index, dtype=torch.long if not index else None) if isinstance(index, list) else index


def run(func, args, kwargs):
    flat, _ = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    here = [x for x in tensors if isinstance(x, Pretended)]
    device = kwargs.get("device")
    drawn = here or (device is not None and torch.device(device).type == NAME)
    if drawn and any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in flat):
        raise RuntimeError(f"expected a generator of {DEVICE}, found one of the CPU ({func})")
    if here and func not in MOVES:
        # indices may lie on the CPU, but not what is written there
        of = [x for x in (args[0], *args[2:3]) if isinstance(x, torch.Tensor)] if func in INDEXED else tensors
        if not isinstance(of[0], Pretended) and func in INDEXED:
            raise RuntimeError(f"indices on {DEVICE} into a tensor of the CPU ({func})")
        if strays := [x for x in of if not isinstance(x, Pretended) and (x.dim() or func in JOINED)]:
            raise RuntimeError(
                f"expected all tensors on {DEVICE}, found one of the CPU {tuple(strays[0].shape)} ({func})"
            )
    if func is aten._fused_sdp_choice.default:
        return 0  # in plain mathematics
    stays = bool(here) if func is not aten.copy_.default else isinstance(args[0], Pretended)
    if device is not None:
        device = torch.device(device)
        stays = device.type == NAME
        kwargs = kwargs | {"device": torch.device("cpu") if stays else device}
    bare = lambda x: x.raw if isinstance(x, Pretended) else x  # noqa: E731
    args, raw_kwargs = tree_map(bare, args), tree_map(bare, kwargs)
    found = func(*args, **raw_kwargs)
    if not stays:
        return found
    known = {id(x.raw): x for x in here}  # what is written in place is the same tensor

    def there(x):
        if not isinstance(x, torch.Tensor):
            return x
        return known[id(x)] if id(x) in known else Pretended(x)

    return tree_map(there, found)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """PyTorch copies the content of a new tensor to its device where no dispatch mode sees it, and squeezes the result
    of a linear map of one vector in place, which the tensor around it would not know."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        if func is torch.nn.functional.linear and args[0].dim() == 1 and isinstance(args[0], Pretended):
            return func(args[0][None], *args[1:], **kwargs)[0]
        return func(*args, **kwargs)


@contextmanager
def pretending() -> Iterator[torch.device]:
    """Inside, tensors can be made on the device and moved there."""
    with _Mode(), _Functions():
        yield DEVICE
