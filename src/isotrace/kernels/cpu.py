"""The kernels on the CPU with Numba: the functions of `plain`, the loops of `jit` on slices in threads.

Outputs and their gradients lie token by token, all layers of a token side by side, so that a decoder row meets one
contiguous stretch for all its targets. Rows are read in any order, in column blocks that stay in the cache. A thread
owns a range of tokens (forward) or of features (backward), so none waits for another and every gradient row is
written by one thread, once.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isotrace.kernels import jit, jit_select, memory

BLOCK_BYTES = 2**24  # of rows read again and again
PRODUCT_BYTES = 2**27  # of a product of bytes that is held at once
BYTES = 0.04  # of an entry's standard deviation is that of what rounding to bytes may change
Z = 8  # standard deviations of that which are allowed for
BITS = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


@cache
def pool(n_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(n_threads, "isotrace-kernels")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool.cache_clear)  # a child does not inherit the threads


def parallel(run: Callable[[int, int], Any], bounds: list[int]) -> None:
    """run(start, stop) for every pair of neighbouring bounds, the first on the calling thread."""
    slices = [(a, b) for a, b in pairwise(bounds) if a < b]
    if not slices:
        return
    waiting = [pool(torch.get_num_threads()).submit(run, *part) for part in slices[1:]]
    run(*slices[0])
    for task in waiting:
        task.result()


def even(total: int) -> list[int]:
    n = torch.get_num_threads()
    return [total * i // n for i in range(n + 1)]


def by_pairs(offsets: np.ndarray) -> list[int]:
    """Bounds of feature ranges holding about equally many (token, slot) pairs, each feature counted as one more."""
    cost = offsets + np.arange(len(offsets))
    n = torch.get_num_threads()
    inner = np.searchsorted(cost, [cost[-1] * i / n for i in range(1, n)]).tolist()
    return [0, *inner, len(offsets) - 1]


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().numpy()


@dataclass(frozen=True)
class Pairs:
    """The used slots sorted by feature: place in `[N, k]`, token and value of each, and where a feature's begin."""

    order: np.ndarray
    tokens: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray, indices: np.ndarray, n_features: int) -> "Pairs":
        order, tokens = np.empty((2, values.size), np.int64)
        pairs = cls(order, tokens, np.empty(values.size, values.dtype), np.empty(n_features + 1, np.int64))
        jit.sort_by_feature(values, indices, n_features, order, tokens, pairs.weights, pairs.offsets)
        return pairs


def blocks(n_rows: int, width: int, itemsize: int) -> list[tuple[int, int]]:
    """Column ranges of an array `[n_rows, width]` that stay in the cache while its rows are read in any order."""
    n = -(-n_rows * width * itemsize // BLOCK_BYTES)
    bounds = [width * i // n for i in range(n + 1)]
    return list(pairwise(bounds))


def select(x: Tensor, W_enc: Tensor, b_enc: Tensor, k: int, product: torch.dtype, dense: bool):
    rows = W_enc.detach().T.contiguous()
    x, b_enc = x.detach(), b_enc.detach()
    h = memory.empty((len(x), len(rows)), product)
    values, indices = torch.empty(len(x), k, dtype=rows.dtype), torch.empty(len(x), k, dtype=torch.int64)
    out = values.numpy(), indices.numpy()
    if product == rows.dtype:
        torch.addmm(b_enc, x.to(product), rows.T, out=h)
        h_array, bits = h.numpy(), h.view(BITS[product]).numpy()
        parallel(lambda a, b: jit_select.select(h_array, bits, *out, a, b), even(len(x)))
    elif not dense and select_quantised(x.to(rows.dtype), rows, b_enc, *out):
        return values, indices, None
    else:
        torch.mm(x.to(product), rows.to(product).T, out=h)
        x, bias = x.to(rows.dtype), b_enc.float()
        parts = h.view(torch.uint16).numpy(), array(bias), array(rounding(x, rows, bias))
        exact = array(x), rows.numpy(), array(b_enc)
        parallel(lambda a, b: jit_select.select_rescored(*parts, *exact, *out, a, b), even(len(x)))
        if dense:
            h += bias
    return values, indices, h if dense else None


@dataclass(frozen=True)
class Quantised:
    """Rows `[n, d]` as integers in units of a scale per row; the norms of the rows, and of what that changed."""

    integers: Tensor
    scales: Tensor
    norms: Tensor
    errors: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Quantised":
        made = cls(torch.empty(rows.shape, dtype=torch.int8), *torch.empty(3, len(rows), dtype=rows.dtype))
        parts = array(rows), *(array(t) for t in (made.integers, made.scales, made.norms, made.errors))
        parallel(lambda a, b: jit_select.quantise(*parts, a, b), even(len(rows)))
        return made


@cache
def has_integer_products() -> bool:
    """Whether the CPU multiplies bytes faster than bfloat16: without such instructions PyTorch is many times slower."""
    return torch.backends.mkldnn.is_available() and bool(torch.cpu.get_capabilities().get("avx512_vnni"))


def select_quantised(x: Tensor, rows: Tensor, bias: Tensor, values: np.ndarray, indices: np.ndarray) -> bool:
    """Fill values and indices `[N, k]` from a product of bytes, of half the cost of one in bfloat16. False where the
    CPU has none, or where rounding to bytes would let in too many candidates, as where one dimension dominates."""
    if rows.dtype != torch.float32 or not has_integer_products() or rows.shape[1] % 4:
        return False
    centre = x.mean(0)  # what all tokens share needs no bits
    x_parts, W_parts = Quantised.of(x - centre), Quantised.of(rows)
    # of the difference of two entries, where roundings are independent of each other
    error = torch.hypot(x_parts.errors * W_parts.norms.amax(), x_parts.norms * W_parts.errors.amax()) * 2**0.5
    if not error.mean() <= BYTES * x_parts.norms.mean() * W_parts.norms.square().mean().sqrt():
        return False
    slack = Z * error / rows.shape[1] ** 0.5
    scales = array(x_parts.scales), array(W_parts.scales), array(bias + rows @ centre), array(slack)
    exact = array(x), array(rows), array(bias)
    chunk = min(len(x), max(64, PRODUCT_BYTES // (4 * len(rows))))
    product = memory.empty((chunk, len(rows)), torch.int32)
    for first in range(0, len(x), chunk):
        last = min(first + chunk, len(x))
        part = product[: last - first]
        torch.ops.aten._int_mm.out(x_parts.integers[first:last], W_parts.integers.T, out=part)
        found = part.numpy()
        parallel(
            lambda a, b, first=first, found=found: jit_select.select_quantised(
                found, *scales, *exact, values, indices, first + a, first + b, first
            ),
            even(last - first),
        )
    return True


def largest(h: Tensor, k: int) -> Tensor:
    """Places `[N, k]` int64 of the k largest of every row of h `[N, F]`, in no particular order."""
    h, indices = h.contiguous(), torch.empty(len(h), k, dtype=torch.int64)
    parts = h.numpy(), h.view(BITS[h.dtype]).numpy(), np.empty((len(h), k), h.numpy().dtype), indices.numpy()
    parallel(lambda a, b: jit_select.select(*parts, a, b), even(len(h)))
    return indices


def rounding(x: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """How far rounding to bfloat16 may move two entries of a row past each other, `[N]` float32: for each half of what
    it can at worst change x[n] · rows[f] (Cauchy–Schwarz), √d / 0.6 standard deviations where no dimension dominates;
    and what the bias adds to the rounding of the sum."""
    largest = torch.linalg.vector_norm(rows, dim=1).amax()
    return (jit_select.SLACK * (torch.linalg.vector_norm(x, dim=1) * largest + bias.abs().amax())).float()


def encode_values(x: Tensor, W_enc: Tensor, b_enc: Tensor, indices: Tensor) -> Tensor:
    values = torch.empty(indices.shape, dtype=W_enc.dtype)
    parts = array(x.to(W_enc.dtype)), array(W_enc.T), array(b_enc), array(indices), values.numpy()
    parallel(lambda a, b: jit.encode_values(*parts, a, b), even(len(x)))
    return values


def encode_gradients(grad: Tensor, x: Tensor, indices: Tensor, n_features: int) -> tuple[Tensor, Tensor]:
    weight, bias = memory.empty((n_features, x.shape[1]), grad.dtype), torch.empty(n_features, dtype=grad.dtype)
    rows, out, out_bias = array(x.to(grad.dtype)), weight.numpy(), bias.numpy()
    pairs = Pairs.of(array(grad), array(indices), n_features)

    def run(start: int, stop: int) -> None:
        jit.scatter_rows(pairs.tokens, pairs.weights, pairs.offsets, rows, 0, out, 0, rows.shape[1], start, stop)
        jit.bias_gradient(pairs.weights, pairs.offsets, out_bias, start, stop)

    parallel(run, by_pairs(pairs.offsets))
    return weight, bias


def decode(values: list[Tensor], indices: list[Tensor], W_dec: list[Tensor], d_out: int) -> Tensor:
    total = torch.empty(len(values[0]), len(values), d_out, dtype=values[0].dtype)
    v, i, W = [array(t) for t in values], [array(t) for t in indices], [array(t) for t in W_dec]
    out = total.flatten(1).numpy()

    def run(start: int, stop: int) -> None:
        out[start:stop] = 0
        for source, weight in enumerate(W):
            for a, b in blocks(len(weight), weight.shape[1], weight.itemsize):
                jit.gather(v[source], i[source], weight, out, source * d_out, a, b, start, stop)

    parallel(run, even(len(v[0])))
    return total.transpose(0, 1)


def decode_gradients(
    grad: Tensor,
    values: list[Tensor],
    indices: list[Tensor],
    W_dec: list[Tensor],
    of_values: list[bool],
    of_weights: list[bool],
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    rows, d_out = array(grad.transpose(0, 1)).reshape(grad.shape[1], -1), grad.shape[2]
    g_values = [torch.zeros_like(v) if asked else None for v, asked in zip(values, of_values, strict=True)]
    pairs = zip(W_dec, of_weights, strict=True)
    g_weights = [memory.empty(tuple(w.shape), w.dtype) if asked else None for w, asked in pairs]
    for source, weight in enumerate(W_dec):
        g_v, g_w = g_values[source], g_weights[source]
        if g_v is None and g_w is None:
            continue
        decode_back(rows, source * d_out, array(values[source]), array(indices[source]), array(weight), g_v, g_w)
    return g_values, g_weights


def decode_back(rows, shift: int, v, i, W, g_v: Tensor | None, g_w: Tensor | None) -> None:
    """Gradients of v `[N, k]` and W `[F, D]` where asked for, from rows `[N, ≥ shift + D]`."""
    pairs = Pairs.of(v, i, len(W))
    tokens, weights, offsets = pairs.tokens, pairs.weights, pairs.offsets
    g_sorted = np.zeros_like(weights)
    out = np.empty_like(W) if g_w is None else g_w.numpy()

    def run(start: int, stop: int) -> None:
        for a, b in blocks(len(rows), W.shape[1], W.itemsize):
            if g_v is None:
                jit.scatter_rows(tokens, weights, offsets, rows, shift, out, a, b, start, stop)
            else:
                jit.decode_back(tokens, weights, offsets, rows, shift, W, g_sorted, out, a, b, start, stop)

    parallel(run, by_pairs(offsets))
    if g_v is not None:
        used = offsets[-1]
        g_v.numpy().ravel()[pairs.order[:used]] = g_sorted[:used]
