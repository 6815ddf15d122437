"""The subject's own forward pass with faster kernels for the same arithmetic, in the same precision.

Nothing here changes what is computed: sums are taken in another order, so float32 results differ in the last digits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from isotrace.subjects.subject import Subject, attention_replaced, forwards_replaced


@contextmanager
def fast_kernels(subject: Subject) -> Iterator[None]:
    """Within the context attention is fused (no pattern is made), GELU is one pass instead of five, and linear maps
    on CPUs with AVX-512 run in oneDNN, since the BLAS that torch calls uses half of the vector width on some of them.

    For passes without gradient. Modules whose forward someone has already replaced are left alone.
    """
    replaced: dict[nn.Module, Callable[..., Any]] = {}
    if path := subject.family.gelu_after:
        for layer in range(subject.n_layers):
            outer, inner = subject.module(path, layer), subject.module(subject.family.mlp_in, layer)
            replaced[outer] = lambda x, inner=inner: nn.functional.gelu(inner(x))
    if _onednn_is_faster(next(subject.model.parameters())):
        for module in subject.module(subject.family.layers).modules():
            if type(module) is nn.Linear:
                replaced[module] = partial(_linear, module)
    free = {module: function for module, function in replaced.items() if "forward" not in module.__dict__}
    with attention_replaced(subject.attentions, _fused_attention), forwards_replaced(free):
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
