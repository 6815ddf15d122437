"""Loops of the Numba backend. Each works on a slice `[start, stop)` of tokens or features, without the GIL, so that
slices run side by side in threads. Where features come first, the (token, slot) pairs in use are sorted by feature:
those of feature f have `tokens[offsets[f] : offsets[f + 1]]` and as many `weights`.

Numbers keep the type of their arrays: one literal 0 among float32 makes Numba work in float64, at half the speed.
"""

import numpy as np
from numba import njit
from numba.core.errors import NumbaError

LANE = 8  # entries behind one group maximum
RANKED = 512  # up to so many, counting ranks beats a selection


def compiled(function):
    """Machine code is kept on disk where a folder can be written, else made again in every process."""
    options = {"nogil": True, "fastmath": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except (RuntimeError, OSError, NumbaError):
        return njit(**options)(function)


@compiled
def first_largest(keys, items, count, k):
    """Reorder keys and items `[:count]` in step so that the k largest keys come first (Hoare's selection)."""
    low, high = 0, count - 1
    while low < high:
        pivot = keys[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while keys[i] > pivot:
                i += 1
            while keys[j] < pivot:
                j -= 1
            if i <= j:
                keys[i], keys[j] = keys[j], keys[i]
                items[i], items[j] = items[j], items[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            return


@compiled
def keep_largest(values, items, count, k, ranks, out_values, out_items):
    """The k largest of values `[:count]`: a selection, or where they are few the ranks of all, counted in one sweep
    without a branch. values and items are overwritten, ranks is scratch."""
    taken = 0
    if count <= RANKED:
        ranks[:count] = 0
        for j in range(count):
            value = values[j]
            for i in range(count):
                ranks[i] += value > values[i]
        for i in range(count):
            taken += ranks[i] < k
    if taken != k:  # ties, or many
        first_largest(values, items, count, k)
        ranks[:count] = k
        ranks[:k] = 0
    taken = 0
    for i in range(count):
        if ranks[i] < k:
            out_values[taken] = values[i]
            out_items[taken] = items[i]
            taken += 1


@compiled
def threshold(maxima, mask, m, guess):
    """A key that at least m of the maxima reach, and few more unless there are ties: galloping from `guess`, then
    bisection. `mask` is the largest key, −mask − 1 the smallest."""
    low, high, step = -mask - 1, mask, (mask >> 12) + 1
    middle = guess
    while low < high:  # m or more reach `low`, fewer reach high + 1
        reached = 0
        for key in maxima:
            reached += key >= middle
        if reached >= m:
            if reached <= m + m // 8:
                return middle
            low = middle
        else:
            high = middle - 1
        step = min(2 * step, mask // 2)
        if high == mask and low < mask - step:
            middle = low + step
        elif low == -mask - 1 and high > step - mask:
            middle = high + 1 - step
        else:
            middle = (low | high) - ((low ^ high) >> 1)  # rounded up, without overflow
    return low


@compiled
def candidates(row, mask, m, guess, keys, maxima, hits, chosen, items):
    """(count, threshold): at least m entries of `row` (integer view) in chosen and items `[:count]`, their ordered
    bits and places, with the m largest among them. keys, maxima and hits are scratch."""
    lanes = len(maxima)
    for i in range(len(row)):
        keys[i] = row[i] ^ ((row[i] >> 63) & mask)
    if lanes < 2 * m:
        for i in range(len(row)):
            chosen[i] = keys[i]
            items[i] = i
        return len(row), guess
    a, b, c, d = keys[:lanes], keys[lanes : 2 * lanes], keys[2 * lanes : 3 * lanes], keys[3 * lanes : 4 * lanes]
    e, f, g = keys[4 * lanes : 5 * lanes], keys[5 * lanes : 6 * lanes], keys[6 * lanes : 7 * lanes]
    h = keys[7 * lanes : 8 * lanes]
    for i in range(lanes):
        low, high = max(max(a[i], b[i]), max(c[i], d[i])), max(max(e[i], f[i]), max(g[i], h[i]))
        maxima[i] = max(low, high)
    lowest = threshold(maxima, np.int64(mask), m, guess)
    n_hits = 0
    for i in range(lanes):
        hits[n_hits] = i
        n_hits += maxima[i] >= lowest
    count = 0
    for hit in hits[:n_hits]:
        for i in range(hit, LANE * lanes, lanes):
            chosen[count] = keys[i]
            items[count] = i
            count += keys[i] >= lowest
    for i in range(LANE * lanes, len(row)):
        chosen[count] = keys[i]
        items[count] = i
        count += keys[i] >= lowest
    return count, lowest


@compiled
def dot(a, b):
    total = a[0] * b[0]
    for i in range(1, len(a)):
        total += a[i] * b[i]
    return total


@compiled
def select(h, bits, mask, k, values, indices, start, stop):
    """values, indices `[N, k]` of the k largest of h `[N, F]` after ReLU; `bits` is its integer view, `mask` the
    largest such integer."""
    width, guess = h.shape[1], np.int64(mask) // 2
    keys, maxima = np.empty(width, bits.dtype), np.empty(width // LANE, bits.dtype)
    hits, items, chosen = np.empty(width + 1, np.int64), np.empty(width + 1, np.int64), np.empty(width + 1, bits.dtype)
    ranks = np.empty(width, np.int32)
    for n in range(start, stop):
        count, guess = candidates(bits[n], mask, k, guess, keys, maxima, hits, chosen, items)
        keep_largest(chosen, items, count, k, ranks, keys, indices[n])
        for j in range(k):
            values[n, j] = max(h[n, indices[n, j]], 0)


@compiled
def select_rescored(bits, mask, x, W, b, k, m, values, indices, start, stop):
    """As `select`, from approximate pre-activations: the m best are computed again as x[n] · W[f] + b[f]."""
    width, guess = bits.shape[1], np.int64(mask) // 2
    keys, maxima = np.empty(width, bits.dtype), np.empty(width // LANE, bits.dtype)
    hits, items, chosen = np.empty(width + 1, np.int64), np.empty(width + 1, np.int64), np.empty(width + 1, bits.dtype)
    exact = np.empty(width, x.dtype)
    ranks = np.empty(width, np.int32)
    for n in range(start, stop):
        count, guess = candidates(bits[n], mask, m, guess, keys, maxima, hits, chosen, items)
        if count > m + m // 2:
            first_largest(chosen, items, count, m)
            count = m
        for j in range(count):
            exact[j] = dot(x[n], W[items[j]]) + b[items[j]]
        keep_largest(exact, items, count, k, ranks, values[n], indices[n])
        for j in range(k):
            values[n, j] = max(values[n, j], 0)


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
            w0 = W[rows[j], a:b]
            w1 = W[rows[j + 1], a:b]
            w2 = W[rows[j + 2], a:b]
            w3 = W[rows[j + 3], a:b]
            for i in range(b - a):
                total[i] += v0 * w0[i] + v1 * w1[i] + v2 * w2[i] + v3 * w3[i]


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
    """grad[f, a : b] = Σ over pairs of feature f of weight · its token's row of `rows [N, D]`, columns shift + a … b."""
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
                for i in range(b - a):
                    out[i] = v0 * r0[i] + v1 * r1[i] + v2 * r2[i] + v3 * r3[i]
            else:
                for i in range(b - a):
                    out[i] += v0 * r0[i] + v1 * r1[i] + v2 * r2[i] + v3 * r3[i]


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
            s0 = s1 = s2 = s3 = none
            if at == first:
                for i in range(b - a):
                    s0 += w[i] * r0[i]
                    s1 += w[i] * r1[i]
                    s2 += w[i] * r2[i]
                    s3 += w[i] * r3[i]
                    out[i] = v0 * r0[i] + v1 * r1[i] + v2 * r2[i] + v3 * r3[i]
            else:
                for i in range(b - a):
                    s0 += w[i] * r0[i]
                    s1 += w[i] * r1[i]
                    s2 += w[i] * r2[i]
                    s3 += w[i] * r3[i]
                    out[i] += v0 * r0[i] + v1 * r1[i] + v2 * r2[i] + v3 * r3[i]
            g_weights[at] += s0
            if at + 1 < last:
                g_weights[p1] += s1
            if at + 2 < last:
                g_weights[p2] += s2
            if at + 3 < last:
                g_weights[p3] += s3
