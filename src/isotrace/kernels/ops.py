"""Sparse encode and decode as differentiable operations (METHODS §2).

    encode   a = the k largest of ReLU(x W_enc + b_enc)           Gao et al. 2024, eq. 2
    decode   m̂_t = Σ_{t − window < s ≤ t} a_s W_dec^{s→t}          Ameisen et al. 2025

Both backward passes touch only the active (token, feature) pairs. A slot whose value is 0 is unused: it adds
nothing, its index is not looked at, and its gradient is 0.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from isotrace.kernels import plain
from isotrace.kernels.backend import Backend, resolve


def implementation(backend: Backend, weight: Tensor) -> ModuleType:
    if resolve(backend, weight) == "torch":
        return plain
    from isotrace.kernels import cpu

    return cpu


def sparse_encode(
    x: Tensor,
    W_enc: Tensor,
    b_enc: Tensor,
    k: int,
    *,
    dtype: torch.dtype,
    rescore: bool = False,
    dense: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(values `[N, k]`, indices `[N, k]` int64, h `[N, F]` or None) of x `[N, d_in]`.

    The k largest entries of x W_enc + b_enc after ReLU, in no particular order; values have the dtype of W_enc
    `[d_in, F]`, b_enc `[F]`. Differentiable in W_enc and b_enc, and in x if it requires a gradient; a value that
    ReLU set to 0 passes none.

    `dtype` is that of the matrix product: W_enc's own, or bfloat16, where the product only proposes candidates, which
    are computed again from W_enc itself, so that values are as exact (where a CPU multiplies bytes faster, and rounding
    to them lets in few, it is a product of bytes). Numba takes all that rounding is likely to have
    moved past the k-th, far beyond chance, but at most 4k; PyTorch takes 2k. The selection is that of W_enc's own
    dtype but where more than 3k (PyTorch: k) others are that close. `rescore=True` asks for that route while saying
    float32.
    `dense=True` also returns the product h, in its own dtype, without gradient.

    Raises ValueError when dtype is neither, or k is not in 1…F.
    """
    if dtype not in (W_enc.dtype, torch.bfloat16):
        raise ValueError(f"dtype must be that of W_enc ({W_enc.dtype}) or bfloat16, not {dtype}")
    if not 1 <= k <= W_enc.shape[1]:
        raise ValueError(f"k must be between 1 and {W_enc.shape[1]}, not {k}")
    product = torch.bfloat16 if rescore else dtype
    with torch.autocast(x.device.type, enabled=False):
        return _Encode.apply(x, W_enc, b_enc, k, product, dense, implementation(backend, W_enc))  # type: ignore[return-value]


def encode_at(x: Tensor, W_enc: Tensor, b_enc: Tensor, indices: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Pre-activations (before ReLU) of the chosen features: `[N, k]` of x `[N, d_in]` and indices `[N, k]`.

    A negative index is an unused slot, of value 0. Differentiable as `sparse_encode`; slots that receive the
    gradient 0 cost nothing.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _EncodeAt.apply(x, W_enc, b_enc, indices, implementation(backend, W_enc))  # type: ignore[return-value]


def sparse_decode(
    values: list[Tensor],
    indices: list[Tensor],
    W_dec: list[Tensor],
    d_out: int,
    window: int,
    *,
    backend: Backend = "auto",
) -> Tensor:
    """m̂ `[L, N, d_out]` without bias, of values and indices `[N, k_s]` per source layer s.

    `W_dec[s] [F, n_targets · d_out]` with n_targets = min(window, L − s); its slot j writes layer s + j. Differentiable
    in values and W_dec (dense gradients of W_dec's shape). A feature appears at most once among a token's used slots.

    Raises ValueError when shapes do not fit together.
    """
    n_layers = len(values)
    if not n_layers or not len(indices) == len(W_dec) == n_layers:
        raise ValueError(f"one entry per layer: {n_layers} values, {len(indices)} indices, {len(W_dec)} decoders")
    for source, (v, i, weight) in enumerate(zip(values, indices, W_dec, strict=True)):
        width = min(window, n_layers - source) * d_out
        if v.shape != i.shape or len(v) != len(values[0]) or weight.shape[1] != width:
            raise ValueError(
                f"layer {source}: values {list(v.shape)}, indices {list(i.shape)} and W_dec {list(weight.shape)}, "
                f"where [{len(values[0])}, k] twice and [F, {width}] fit"
            )
    with torch.autocast(values[0].device.type, enabled=False):
        return _Decode.apply(d_out, implementation(backend, W_dec[0]), *values, *indices, *W_dec)  # type: ignore[return-value]


def sparse_rows(values: Tensor, indices: Tensor, weight: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Σ_j values[n, j] · weight[indices[n, j]], `[N, D]`, of values and indices `[N, k]` and weight `[F, D]`.

    Differentiable in values alone, and also where a value is 0, which for `sparse_decode` is an unused slot.
    """
    with torch.autocast(values.device.type, enabled=False):
        return _Rows.apply(values, indices, weight.detach(), implementation(backend, weight))  # type: ignore[return-value]


def _encode_backward(ctx: Any, grad: Tensor, x: Tensor, W_enc: Tensor, indices: Tensor):
    weight = bias = rows = None
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        weight, bias = ctx.kernels.encode_gradients(grad, x, indices, W_enc.shape[1])
        weight = weight.T
    if ctx.needs_input_grad[0]:
        rows = ctx.kernels.decode([grad], [indices], [W_enc.T], x.shape[1])[0].to(x.dtype)
    return rows, weight, bias


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, W_enc, b_enc, k, product, dense, kernels):
        values, indices, h = kernels.select(x, W_enc, b_enc, k, product, dense)
        ctx.kernels = kernels
        ctx.save_for_backward(x, W_enc, values, indices)
        ctx.mark_non_differentiable(*(t for t in (indices, h) if t is not None))
        ctx.set_materialize_grads(False)
        return values, indices, h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad_outputs[0]
        if grad is None:
            return (None,) * 7
        x, W_enc, values, indices = ctx.saved_tensors
        grad = torch.where(values > 0, grad, 0)
        return *_encode_backward(ctx, grad, x, W_enc, indices), None, None, None, None


class _EncodeAt(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, W_enc, b_enc, indices, kernels):
        used = indices >= 0
        ctx.kernels = kernels
        ctx.save_for_backward(x, W_enc, indices)
        return torch.where(used, kernels.encode_values(x, W_enc, b_enc, indices.clamp(min=0)), 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W_enc, indices = ctx.saved_tensors
        grad = torch.where(indices >= 0, grad_outputs[0], 0)
        return *_encode_backward(ctx, grad, x, W_enc, indices.clamp(min=0)), None, None


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values, indices, weight, kernels):
        ctx.kernels = kernels
        ctx.save_for_backward(indices, weight)
        return kernels.decode([values], [indices], [weight], weight.shape[1])[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        indices, weight = ctx.saved_tensors
        found = ctx.kernels.encode_values(grad_outputs[0], weight.T, weight.new_zeros(len(weight)), indices)
        return found, None, None, None


class _Decode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, d_out, kernels, *tensors):
        n = len(tensors) // 3
        ctx.kernels = kernels
        ctx.save_for_backward(*tensors)
        return kernels.decode(list(tensors[:n]), list(tensors[n : 2 * n]), list(tensors[2 * n :]), d_out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs):  # pyright: ignore[reportIncompatibleMethodOverride]
        tensors = ctx.saved_tensors
        n = len(tensors) // 3
        needs = list(ctx.needs_input_grad[2:])
        values, indices, W_dec = (list(tensors[i * n : (i + 1) * n]) for i in range(3))
        g_values, g_weights = ctx.kernels.decode_gradients(
            grad_outputs[0], values, indices, W_dec, needs[:n], needs[2 * n :]
        )
        return None, None, *g_values, *(None for _ in range(n)), *g_weights
