"""The subject's own forward pass with faster kernels for the same arithmetic, in the same precision.

Nothing here changes what is computed: sums are taken in another order, so float32 results differ in the last digits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from isotrace.subjects.dispatch import Site, overlaid
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
