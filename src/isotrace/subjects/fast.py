"""The subject's own forward pass with faster kernels for the same arithmetic, in the same precision, and with what the
rows of a batch have in common computed once.

Nothing here changes what is computed: kernels take sums in another order, so float32 results differ in the last digits;
what is shared is the same to the bit wherever a product's rows do not depend on how many there are.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from isotrace.subjects.dispatch import After, Dispatched, Site, install, overlaid, watched
from isotrace.subjects.subject import Subject


@contextmanager
def fast_kernels(subject: Subject) -> Iterator[None]:
    """Within the context attention is fused (no pattern is made), GELU is one pass instead of five, and linear maps
    on CPUs with AVX-512 run in oneDNN, since the BLAS that torch calls uses half of the vector width on some of them.

    Attention that does not go through the registry of attention functions stays as it is. For passes without
    gradient. Where something else computes a module, or an attention pattern is read or set, they step aside.
    """
    kernels: dict[nn.Module, Callable[..., Any]] = {}
    for stack, index in subject.family.blocks(*subject.stack_sizes):
        if stack.gelu_after:
            outer, inner = (subject.module(stack.path(index, path)) for path in (stack.gelu_after, stack.mlp_in))
            kernels[outer] = lambda x, inner=inner: nn.functional.gelu(inner(x))
    if _onednn_is_faster(next(subject.model.parameters())):
        for stack in subject.family.stacks:
            linear = [m for m in subject.module(stack.layers).modules() if type(m) is nn.Linear]
            kernels |= {module: partial(_linear, module) for module in linear}
    sites = [(module, Site(kernel=function)) for module, function in kernels.items()]
    if subject.family.pattern == "function":
        sites += [(module, Site(fused=_fused_attention)) for module in subject.attentions]
    with overlaid(sites):
        yield


def _onednn_is_faster(weight: Tensor) -> bool:
    capable = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    plain = weight.device.type == "cpu" and weight.dtype == torch.float32
    return capable and plain and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _linear(module: nn.Linear, x: Tensor) -> Tensor:
    # What torch's own compiler emits for a linear map; `Tensor.to_mkldnn` would copy inputs and outputs.
    return torch.ops.mkldnn._linear_pointwise(x, module.weight, module.bias, "none", [], "")


def _fused_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float
) -> tuple[Tensor, None]:
    out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return out.transpose(1, 2), None


@contextmanager
def blocks_recorded(subject: Subject) -> Iterator[list[Any]]:
    """Yields what each block gave, in the order in which they ran."""
    found: list[Any] = []
    with watched([subject.hookpoint(f"layers.{i}.resid_post")[0] for i in range(subject.n_layers)], _keep(found)):
        yield found


def _keep(found: list[Any]) -> After:
    return lambda module, args, output: found.append(output)


def blocks_given(subject: Subject, outputs: Sequence[Any], n_rows: int):
    """Context in which the first blocks do not run but give `outputs`, recorded of one row, to each of `n_rows`: for
    passes that differ only behind them."""

    repeated = [_in_tensors(given, lambda x: x.expand(n_rows, *x.shape[1:])) for given in outputs]
    blocks = {subject.hookpoint(f"layers.{i}.resid_post")[0]: given for i, given in enumerate(repeated)}
    return overlaid((m, Site(forward=lambda *_, given=given, **__: given, fresh=True)) for m, given in blocks.items())


def _in_tensors(given: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """`given` with every tensor in it changed, in tuples and dicts too."""
    if isinstance(given, tuple):
        return tuple(_in_tensors(part, change) for part in given)
    if isinstance(given, dict):
        return {name: _in_tensors(part, change) for name, part in given.items()}
    return change(given) if isinstance(given, Tensor) else given


def _once(x: Tensor, n_rows: int) -> Tensor:
    """The first of `n_rows` rows, where all are the same."""
    if x.dim() < 2 or len(x) != n_rows:
        return x
    return x[:1] if x.stride(0) == 0 or bool((x == x[:1]).all()) else x


def rows_shared(subject: Subject, layer: int):
    """Context in which a block whose rows are all given the same computes one row, up to the first edit within it that
    tells them apart; what it gives has all rows."""
    module, _ = subject.hookpoint(f"layers.{layer}.resid_post")
    install((module,))
    own = cast(Dispatched, module.forward).own or partial(type(module).forward, module)

    def compute(*args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        n_rows = len(tensors[0]) if tensors else 1
        if n_rows == 1:
            return own(*args, **kwargs)
        once = lambda x: _once(x, n_rows)  # noqa: E731
        found = own(*_in_tensors(args, once), **_in_tensors(kwargs, once))
        return _in_tensors(found, lambda x: x.expand(n_rows, *x.shape[1:]) if x.dim() > 1 and len(x) == 1 else x)

    return overlaid(((module, Site(kernel=compute)),))
