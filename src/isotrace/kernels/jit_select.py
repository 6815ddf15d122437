"""Loops of the Numba backend that find the k largest entries of wide rows, on slices of tokens as those of `jit`.

Numbers are compared as integer keys in the same order: the bits of a positive number, those of a negative one with all
but the sign flipped.
"""

import numpy as np

from isotrace.kernels.jit import compiled, dot, in_order

TOKENS = 64  # searched before their candidates are computed again
LANE = 8  # entries behind one group maximum
SLACK = 2.2 * 2**-8  # what rounding two numbers to bfloat16 changes, relative, and a tenth for the order of sums
RANKED = 512  # up to so many, counting ranks beats a selection


@in_order  # where numbers are taken never to be NaN, a NaN would send it out of bounds
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


@in_order
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
def group_maxima(keys, maxima):
    n = len(maxima)
    a, b, c, d = keys[:n], keys[n : 2 * n], keys[2 * n : 3 * n], keys[3 * n : 4 * n]
    e, f, g, h = keys[4 * n : 5 * n], keys[5 * n : 6 * n], keys[6 * n : 7 * n], keys[7 * n : 8 * n]
    for i in range(n):
        low, high = max(max(a[i], b[i]), max(c[i], d[i])), max(max(e[i], f[i]), max(g[i], h[i]))
        maxima[i] = max(low, high)


@compiled
def threshold(maxima, k, guess):
    """A key that at least k of the maxima reach, and few more unless there are ties: galloping from `guess`, then
    bisection. The lowest key where the maxima are few."""
    mask = np.int64(np.iinfo(maxima.dtype).max)
    low, high, step = -mask - 1, mask, (mask >> 12) + 1
    middle = guess
    if len(maxima) < 2 * k:
        return low
    while low < high:  # k or more reach `low`, fewer reach high + 1
        reached, key = 0, maxima.dtype.type(middle)
        for i in range(len(maxima)):
            reached += maxima[i] >= key
        if reached >= k:
            if reached <= k + k // 8:
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
def reaching(keys, maxima, lowest, hits, chosen, items):
    """How many keys reach `lowest`: they are in chosen and their places in items. hits is scratch."""
    lanes, n_hits, count, key = len(maxima), 0, 0, keys.dtype.type(lowest)
    for i in range(lanes):
        hits[n_hits] = i
        n_hits += maxima[i] >= key
    for hit in hits[:n_hits]:
        for i in range(hit, LANE * lanes, lanes):
            chosen[count], items[count] = keys[i], i
            count += keys[i] >= key
    for i in range(LANE * lanes, len(keys)):
        chosen[count], items[count] = keys[i], i
        count += keys[i] >= key
    return count


@compiled
def select(h, bits, values, indices, start, stop):
    """values, indices `[N, k]` of the k largest of h `[N, F]` after ReLU; `bits` is its integer view."""
    width, k, mask = h.shape[1], values.shape[1], np.iinfo(bits.dtype).max
    keys, maxima, guess = np.empty(width, bits.dtype), np.empty(width // LANE, bits.dtype), np.int64(mask) // 2
    hits, items, chosen = np.empty(width + 1, np.int64), np.empty(width + 1, np.int64), np.empty(width + 1, bits.dtype)
    ranks = np.empty(width, np.int32)
    for n in range(start, stop):
        row = bits[n]
        for i in range(width):
            keys[i] = row[i] ^ ((row[i] >> 63) & mask)
        group_maxima(keys, maxima)
        guess = threshold(maxima, k, guess)
        count = reaching(keys, maxima, guess, hits, chosen, items)
        keep_largest(chosen, items, count, k, ranks, keys, indices[n])
        for j in range(k):
            values[n, j] = max(h[n, indices[n, j]], 0)


@compiled
def ordered(bits, bias, keys):
    """Keys of bfloat16 `bits` plus a bias, as float32."""
    for i in range(len(keys)):
        number = np.uint32(np.uint32(bits[i]) << np.uint32(16)).view(np.float32)
        key = np.float32(number + bias[i]).view(np.int32)
        keys[i] = key ^ ((key >> 31) & np.int32(2**31 - 1))


@compiled
def scaled(product, x_scale, W_scale, bias, keys):
    """Keys of the numbers that the integers of a product stand for, plus a bias, as float32."""
    for i in range(len(keys)):
        number = np.float32(product[i]) * W_scale[i]
        key = np.float32(number * x_scale + bias[i]).view(np.int32)
        keys[i] = key ^ ((key >> 31) & np.int32(2**31 - 1))


@compiled
def peak(row):
    largest = abs(row[0])
    for i in range(1, len(row)):
        size = abs(row[i])
        largest = size if size > largest else largest
    return largest


@compiled
def deviation(row, integers, scale):
    """The norm of row − scale · integers."""
    total = (row[0] - scale * integers[0]) ** 2
    for i in range(1, len(row)):
        difference = row[i] - scale * integers[i]
        total += difference * difference
    return np.sqrt(total)


@compiled
def quantise(rows, integers, scales, norms, errors, start, stop):
    """Integers of at most 127 in units of a scale per row; the norm of each row and that of what rounding changed."""
    one = rows.dtype.type(1)
    for n in range(start, stop):
        row, out = rows[n], integers[n]
        scales[n] = peak(row) / rows.dtype.type(127)
        per = one / scales[n] if scales[n] > 0 else one
        for i in range(len(row)):
            out[i] = np.int8(np.rint(row[i] * per))
        norms[n], errors[n] = np.sqrt(dot(row, row)), deviation(row, out, scales[n])


@compiled
def below(guess, slack, relative):
    """The key of t − slack − relative · |t|, t the number of the key `guess`; never above it, whatever is no number."""
    if guess == -(2**31):
        return guess
    key = np.int32(guess)
    t = np.int32(key ^ ((key >> 31) & np.int32(2**31 - 1))).view(np.float32)
    key = np.float32(t - slack - relative * abs(t)).view(np.int32)
    return min(guess, np.int64(key ^ ((key >> 31) & np.int32(2**31 - 1))))


@compiled
def candidates(keys, maxima, lowest, limit, hits, chosen, items, found):
    """How many keys reach `lowest`, at most `limit`, the largest; their places are in found."""
    count = reaching(keys, maxima, lowest, hits, chosen, items)
    if count > limit:
        first_largest(chosen, items, count, limit)
        count = limit
    found[:count] = items[:count]
    return count


@compiled
def rescored(x, W, b, found, counts, ranks, exact, values, indices, first, last):
    """values, indices of the k largest x[n] · W[f] + b[f] after ReLU among the candidates of tokens first … last. Apart
    from the search, which would keep rows of W from arriving early."""
    k = values.shape[1]
    for n in range(first, last):
        row, count = found[n - first], counts[n - first]
        for j in range(count):
            exact[j] = dot(x[n], W[row[j]]) + b[row[j]]
        keep_largest(exact, row, count, k, ranks, values[n], indices[n])
        for j in range(k):
            values[n, j] = max(values[n, j], 0)


@compiled
def select_rescored(bits, bias, slack, x, W, b, values, indices, start, stop):
    """As `select`, from products x W in bfloat16 (bits `[N, F]` uint16) without their bias `[F]` float32. What may be
    among the k largest is computed again as x[n] · W[f] + b[f]: all within slack[n] + SLACK · |t| of t, a value that k
    entries reach, or of more than 4k the 4k largest."""
    width, k = bits.shape[1], values.shape[1]
    keys, maxima, guess = np.empty(width, np.int32), np.empty(width // LANE, np.int32), np.int64(2**30)
    hits, items, chosen = np.empty(width + 1, np.int64), np.empty(width + 1, np.int64), np.empty(width + 1, np.int32)
    found, counts = np.empty((TOKENS, 4 * k), np.int64), np.empty(TOKENS, np.int64)
    ranks, exact = np.empty(4 * k, np.int32), np.empty(4 * k, values.dtype)
    for first in range(start, stop, TOKENS):
        last = min(first + TOKENS, stop)
        for n in range(first, last):
            ordered(bits[n], bias, keys)
            group_maxima(keys, maxima)
            guess = threshold(maxima, k, guess)
            lowest = below(guess, slack[n], SLACK)
            counts[n - first] = candidates(keys, maxima, lowest, 4 * k, hits, chosen, items, found[n - first])
        rescored(x, W, b, found, counts, ranks, exact, values, indices, first, last)


@compiled
def select_quantised(product, x_scale, W_scale, bias, slack, x, W, b, values, indices, start, stop, shift):
    """As `select_rescored`, from `quantise`d x and W: product int32 of row n, here n − shift, is in units of x_scale[n]
    · W_scale[f], and at most slack[n] away; sums of integers are exact."""
    width, k = product.shape[1], values.shape[1]
    keys, maxima, guess = np.empty(width, np.int32), np.empty(width // LANE, np.int32), np.int64(2**30)
    hits, items, chosen = np.empty(width + 1, np.int64), np.empty(width + 1, np.int64), np.empty(width + 1, np.int32)
    found, counts = np.empty((TOKENS, 4 * k), np.int64), np.empty(TOKENS, np.int64)
    ranks, exact, none = np.empty(4 * k, np.int32), np.empty(4 * k, values.dtype), np.float32(0)
    for first in range(start, stop, TOKENS):
        last = min(first + TOKENS, stop)
        for n in range(first, last):
            scaled(product[n - shift], x_scale[n], W_scale, bias, keys)
            group_maxima(keys, maxima)
            guess = threshold(maxima, k, guess)
            lowest = below(guess, slack[n], none)
            counts[n - first] = candidates(keys, maxima, lowest, 4 * k, hits, chosen, items, found[n - first])
        rescored(x, W, b, found, counts, ranks, exact, values, indices, first, last)
