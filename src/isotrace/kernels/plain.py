"""The kernels in plain PyTorch: any device, any floating dtype; the reference of the other backend.

Everything sparse is written with `embedding_bag`, a weighted sum of gathered rows. Forward it gathers decoder rows
by token; for a weight's gradient it gathers tokens by feature, after sorting the (token, slot) pairs by feature, so
that every row of the gradient is written once.
"""

import torch
from torch import Tensor
from torch.nn import functional

from isotrace.kernels.topk import topk

# Gathering k rows beats the dense product over F of them above this F / k: a GPU multiplies far faster than it
# gathers (an H100 does about 295 operations for each byte that it reads), a CPU only somewhat.
CROSSOVER = {"cuda": 295, "cpu": 16}
CHUNK_BYTES = 2**25  # of gathered rows held at once


def dense_pays(n_features: int, k: int, device: torch.device) -> bool:
    return n_features < CROSSOVER.get(device.type, CROSSOVER["cuda"]) * k


def scatter(values: Tensor, indices: Tensor, n_features: int) -> Tensor:
    """Dense `[N, F]` of the used slots."""
    used = torch.where(values == 0, 0, indices)
    return values.new_zeros(len(values), n_features).scatter_add_(-1, used, values)


def by_feature(values: Tensor, indices: Tensor, n_features: int) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, weights, offsets `[F]`) of the used slots sorted by feature."""
    token, slot = (values != 0).nonzero(as_tuple=True)
    feature, order = indices[token, slot].sort(stable=True)
    counts = torch.bincount(feature, minlength=n_features)
    return token[order], values[token, slot][order], counts.cumsum(0) - counts


def weight_gradient(rows: Tensor, values: Tensor, indices: Tensor, n_features: int) -> Tensor:
    """Σ over used slots of value · row of its token, per feature: `[F, D]` of rows `[N, D]`."""
    if dense_pays(n_features, indices.shape[1], rows.device):
        return scatter(values, indices, n_features).T @ rows
    tokens, weights, offsets = by_feature(values, indices, n_features)
    if not len(tokens):
        return rows.new_zeros(n_features, rows.shape[1])
    return functional.embedding_bag(tokens, rows, offsets, mode="sum", per_sample_weights=weights)


def gather_rows(values: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    """Σ over slots of value · row of `weight [F, D]`: `[N, D]`."""
    if dense_pays(len(weight), indices.shape[1], weight.device):
        return scatter(values, indices, len(weight)) @ weight
    used = torch.where(values == 0, 0, indices)
    return functional.embedding_bag(used, weight, mode="sum", per_sample_weights=values)


def dot_rows(rows: Tensor, indices: Tensor, weight: Tensor) -> Tensor:
    """rows[n] · weight[indices[n, j]] for every slot: `[N, k]` of rows `[N, D]`, weight `[F, D]`."""
    if dense_pays(len(weight), indices.shape[1], weight.device):
        return (rows @ weight.T).gather(-1, indices)
    step = max(1, CHUNK_BYTES // max(1, indices.shape[1] * weight.shape[1] * weight.element_size()))
    parts = [weight[i] @ r[:, :, None] for r, i in zip(rows.split(step), indices.split(step), strict=True)]
    return torch.cat(parts).squeeze(-1)


def select(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, product: torch.dtype, dense: bool):
    """(values after ReLU `[N, k]`, indices int64, h or None); `product` is the dtype of the matrix product."""
    h = functional.linear(x.to(product), W_enc.T.to(product), b_enc.to(product))
    if product == W_enc.dtype:
        values, indices = topk(h, k, backend="torch")
    else:
        candidates = topk(h, min(2 * k, h.shape[1]), backend="torch")[1]
        values, places = topk(encode_values(x, W_enc, b_enc, candidates), k, backend="torch")
        indices = candidates.gather(-1, places)
    return values.relu(), indices, h if dense else None


def encode_values(x: Tensor, W_enc: Tensor, b_enc: Tensor, indices: Tensor) -> Tensor:
    return dot_rows(x, indices, W_enc.T) + b_enc[indices]


def encode_gradients(grad: Tensor, x: Tensor, indices: Tensor, n_features: int) -> tuple[Tensor, Tensor]:
    """Gradients (of W_enc.T `[F, d_in]`, of b_enc `[F]`); slots whose grad is 0 are not touched."""
    used = torch.where(grad == 0, 0, indices)
    bias = grad.new_zeros(n_features).index_add_(0, used.flatten(), grad.flatten())
    return weight_gradient(x, grad, indices, n_features), bias


def decode(values: list[Tensor], indices: list[Tensor], W_dec: list[Tensor], d_out: int) -> Tensor:
    out = values[0].new_zeros(len(values), len(values[0]), d_out)
    for source, (v, i, weight) in enumerate(zip(values, indices, W_dec, strict=True)):
        part = gather_rows(v, i, weight).unflatten(-1, (-1, d_out))
        out[source : source + part.shape[1]] += part.transpose(0, 1)
    return out


def decode_gradients(
    grad: Tensor,
    values: list[Tensor],
    indices: list[Tensor],
    W_dec: list[Tensor],
    of_values: list[bool],
    of_weights: list[bool],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Gradients of values and W_dec, each where asked for; grad `[L, N, d_out]`."""
    g_values: list[Tensor | None] = [None] * len(values)
    g_weights: list[Tensor | None] = [None] * len(values)
    for source, (v, i, weight) in enumerate(zip(values, indices, W_dec, strict=True)):
        n_targets = weight.shape[1] // grad.shape[2]
        rows = grad[source : source + n_targets].transpose(0, 1).flatten(1)
        if of_values[source]:
            used = torch.where(v == 0, 0, i)
            g_values[source] = dot_rows(rows, used, weight) * (v != 0)
        if of_weights[source]:
            g_weights[source] = weight_gradient(rows, v, i, len(weight))
    return g_values, g_weights
