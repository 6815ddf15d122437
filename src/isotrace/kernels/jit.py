"""Loops of the Numba backend. Each works on a slice `[start, stop)` of tokens or features, without the GIL, so that
slices run side by side in threads. Where features come first, the (token, slot) pairs in use are sorted by feature:
those of feature f have `tokens[offsets[f] : offsets[f + 1]]` and as many `weights`.

Numbers keep the type of their arrays: one literal 0 among float32 makes Numba work in float64, at half the speed.

The same input gives the same bits, or a resumed run would not end where an uninterrupted one does. LLVM leaves a
vectorised loop for a plain one when what it writes lies close to what it reads, which depends on where arrays were
put in memory: so loops that write may not reorder their sums (`in_order`), and only those that write nothing may.
"""

import numpy as np
from numba import njit
from numba.core.errors import NumbaError


def compiled(function, fastmath: bool | set[str] = True):
    """Machine code is kept on disk where a folder can be written, else made again in every process."""
    options = {"nogil": True, "fastmath": fastmath, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except (RuntimeError, OSError, NumbaError):
        return njit(**options)(function)


def in_order(function):
    """`compiled`, with sums in the order written."""
    return compiled(function, {"contract"})


@in_order
def put4(out, v0, v1, v2, v3, r0, r1, r2, r3):
    for i in range(len(out)):
        out[i] = v0 * r0[i] + v1 * r1[i] + v2 * r2[i] + v3 * r3[i]


@in_order
def add4(out, v0, v1, v2, v3, r0, r1, r2, r3):
    for i in range(len(out)):
        out[i] += v0 * r0[i] + v1 * r1[i] + v2 * r2[i] + v3 * r3[i]


@compiled
def dot4(w, r0, r1, r2, r3):
    s0, s1, s2, s3 = w[0] * r0[0], w[0] * r1[0], w[0] * r2[0], w[0] * r3[0]
    for i in range(1, len(w)):
        s0 += w[i] * r0[i]
        s1 += w[i] * r1[i]
        s2 += w[i] * r2[i]
        s3 += w[i] * r3[i]
    return s0, s1, s2, s3


@compiled
def dot(a, b):
    total = a[0] * b[0]
    for i in range(1, len(a)):
        total += a[i] * b[i]
    return total


@compiled
def encode_values(x, W, b, indices, values, start, stop):
    for n in range(start, stop):
        for j in range(indices.shape[1]):
            f = indices[n, j]
            values[n, j] = dot(x[n], W[f]) + b[f]


@compiled
def gather(values, indices, W, out, shift, a, b, start, stop):
    """out[n, shift + a : shift + b] += Σ_j values[n, j] · W[indices[n, j], a : b]; out `[N, D]`."""
    k = values.shape[1]
    weights, rows = np.zeros(k + 4, values.dtype), np.zeros(k + 4, np.int64)
    for n in range(start, stop):
        used = 0
        for j in range(k):
            weights[used] = values[n, j]
            rows[used] = indices[n, j]
            used += values[n, j] != 0
        total = out[n, shift + a : shift + b]
        for j in range(used, used + 4):
            weights[j] = 0
            rows[j] = rows[0]
        for j in range(0, used, 4):
            v0, v1, v2, v3 = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
            w0, w1, w2, w3 = W[rows[j], a:b], W[rows[j + 1], a:b], W[rows[j + 2], a:b], W[rows[j + 3], a:b]
            add4(total, v0, v1, v2, v3, w0, w1, w2, w3)


@compiled
def sort_by_feature(values, indices, n_features, order, tokens, weights, offsets):
    """Counting sort of the used slots: their places in values, tokens and values by feature. offsets `[F + 1]`."""
    flat, items, k = values.ravel(), indices.ravel(), indices.shape[1]
    offsets[:] = 0
    for pair in range(len(items)):
        if flat[pair] != 0:
            offsets[items[pair] + 1] += 1
    for f in range(n_features):
        offsets[f + 1] += offsets[f]
    place = offsets[:-1].copy()
    for n in range(len(indices)):
        for pair in range(n * k, n * k + k):
            if flat[pair] != 0:
                at = place[items[pair]]
                place[items[pair]] = at + 1
                order[at], tokens[at], weights[at] = pair, n, flat[pair]


@compiled
def scatter_rows(tokens, weights, offsets, rows, shift, grad, a, b, start, stop):
    """grad[f, a : b] = Σ over pairs of feature f of weight · row of its token, columns shift + a … shift + b."""
    none = weights.dtype.type(0)
    for f in range(start, stop):
        out, first, last = grad[f, a:b], offsets[f], offsets[f + 1]
        if first == last:
            out[:] = 0
        for at in range(first, last, 4):
            p1, p2, p3 = min(at + 1, last - 1), min(at + 2, last - 1), min(at + 3, last - 1)
            v0, v1 = weights[at], weights[p1] if at + 1 < last else none
            v2, v3 = weights[p2] if at + 2 < last else none, weights[p3] if at + 3 < last else none
            r0, r1 = rows[tokens[at], shift + a : shift + b], rows[tokens[p1], shift + a : shift + b]
            r2, r3 = rows[tokens[p2], shift + a : shift + b], rows[tokens[p3], shift + a : shift + b]
            if at == first:
                put4(out, v0, v1, v2, v3, r0, r1, r2, r3)
            else:
                add4(out, v0, v1, v2, v3, r0, r1, r2, r3)


@compiled
def bias_gradient(weights, offsets, grad, start, stop):
    for f in range(start, stop):
        grad[f] = weights[offsets[f] : offsets[f + 1]].sum()


@compiled
def decode_back(tokens, weights, offsets, rows, shift, W, g_weights, grad, a, b, start, stop):
    """`scatter_rows`, and in the same pass g_weights[pair] += those columns · W[f, a : b]."""
    none = weights.dtype.type(0)
    for f in range(start, stop):
        out, w, first, last = grad[f, a:b], W[f, a:b], offsets[f], offsets[f + 1]
        if first == last:
            out[:] = 0
        for at in range(first, last, 4):
            p1, p2, p3 = min(at + 1, last - 1), min(at + 2, last - 1), min(at + 3, last - 1)
            v0, v1 = weights[at], weights[p1] if at + 1 < last else none
            v2, v3 = weights[p2] if at + 2 < last else none, weights[p3] if at + 3 < last else none
            r0, r1 = rows[tokens[at], shift + a : shift + b], rows[tokens[p1], shift + a : shift + b]
            r2, r3 = rows[tokens[p2], shift + a : shift + b], rows[tokens[p3], shift + a : shift + b]
            s0, s1, s2, s3 = dot4(w, r0, r1, r2, r3)
            if at == first:
                put4(out, v0, v1, v2, v3, r0, r1, r2, r3)
            else:
                add4(out, v0, v1, v2, v3, r0, r1, r2, r3)
            g_weights[at] += s0
            if at + 1 < last:
                g_weights[p1] += s1
            if at + 2 < last:
                g_weights[p2] += s2
            if at + 3 < last:
                g_weights[p3] += s3
