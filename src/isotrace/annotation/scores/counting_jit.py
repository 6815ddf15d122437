"""Loops of `counting` and `permutation` in Numba, on slices `[start, stop)` of concepts, as those of `kernels.jit`.

Counts of one concept have one int32 per level and feature, level by level: `[n_levels · n_features]`, small enough to
stay in a core's own cache while the concept's tokens are read.
"""

import numpy as np

from isotrace.kernels.jit import compiled

# Division as IEEE has it, so that a null statistic equals an observed one to the bit; a maximum may change its order.
EXACT = {"contract", "nnan", "nsz"}


def exact(function):
    return compiled(function, EXACT)


@exact
def cumulate(counts, n_features):
    """A token at a level is also at every level below."""
    for slot in range(len(counts) - n_features - 1, -1, -1):
        counts[slot] += counts[slot + n_features]


@exact
def count(indptr, feature, level, tokens, instance_ptr, concept_ptr, first, hits, touched, positive, seen, start, stop):
    """hits, touched `[concepts, features, levels]`, positive `[concepts]` of the concepts first + start … first + stop.
    seen int32 `[tokens]` is scratch, all -1."""
    n_features, n_levels = hits.shape[1], hits.shape[2]
    hit, touch, both = np.zeros((3, n_features * n_levels), np.int32)
    # n_levels · instance + its highest level so far: less than n_levels · instance where it has not been touched.
    highest = np.full(n_features, -1, np.int64)
    width, one = np.uint64(n_features), np.int32(1)
    for c in range(start, stop):
        hit[:] = 0
        touch[:] = 0
        both[:] = 0
        for i in range(concept_ptr[first + c], concept_ptr[first + c + 1]):
            a, b, base = instance_ptr[i], instance_ptr[i + 1], i * n_levels
            for t in tokens[a:b]:
                begin, end, new = indptr[t], indptr[t + 1], seen[t] != c
                if new:
                    seen[t] = c
                    positive[c] += 1
                if new and b - a == 1:
                    for k in range(begin, end):
                        both[np.uint64(level[k]) * width + np.uint64(feature[k])] += one
                    continue
                for k in range(begin, end):
                    f, now = np.uint64(feature[k]), base + level[k]
                    slot = np.uint64(level[k]) * width + f
                    hit[slot] += np.int32(new)
                    before = highest[f]
                    if before < now:
                        highest[f] = now
                        touch[slot] += one
                        if before >= base:
                            touch[np.uint64(before - base) * width + f] -= one
        for slot in range(len(both)):
            hit[slot] += both[slot]
            touch[slot] += both[slot]
        cumulate(hit, n_features)
        cumulate(touch, n_features)
        for f in range(n_features):
            for k in range(n_levels):
                hits[c, f, k] = hit[k * n_features + f]
                touched[c, f, k] = touch[k * n_features + f]


@exact
def largest_f1(counts, fired, positive):
    """Largest 2 · counts / (fired + positive); 0/0 = 0."""
    best = np.float32(0)
    for slot in range(len(counts)):
        f1 = np.float32(np.int32(2) * counts[slot]) / np.float32(max(fired[slot] + positive, np.int32(1)))
        best = max(best, f1)
    return best


@exact
def maxima(
    indptr, slots, fired, n_features, track_ptr, labels, run_ptr, runs, track_of, recipient, offset, out, start, stop
):
    """out[c], the largest F1 of concept c over features and levels, with the labels of every track on its recipient.

    Tokens are numbered by place, so that track s has track_ptr[s] … track_ptr[s + 1]. slots `[nnz]`, unsigned:
    level · n_features + feature; fired int32 `[n_levels · n_features]`, cumulated. Run r is all of a concept's labels
    in one track, track_of[r]: labels[runs[r] : runs[r + 1]]; those of concept c are run_ptr[c] … run_ptr[c + 1].
    """
    counts, one = np.zeros(len(fired), np.int32), np.int32(1)
    arriving = np.zeros(len(recipient), np.int64)  # a run, from 1
    for c in range(start, stop):
        counts[:] = 0
        positive = np.int32(0)
        for r in range(run_ptr[c], run_ptr[c + 1]):
            arriving[recipient[track_of[r]]] = r + 1
        for at in range(len(recipient)):  # in the order of memory
            r = arriving[at] - 1
            if r < 0:
                continue
            arriving[at] = 0
            begin, turned = track_ptr[track_of[r]], offset[track_of[r]]
            length = track_ptr[track_of[r] + 1] - begin
            first, room = track_ptr[at], track_ptr[at + 1] - track_ptr[at]
            for label in labels[runs[r] : runs[r + 1]]:
                i = label - begin - turned
                if i < 0:
                    i += length
                while i < room:
                    positive += one
                    for k in range(indptr[first + i], indptr[first + i + 1]):
                        counts[slots[k]] += one
                    i += length
        cumulate(counts, n_features)
        out[c] = largest_f1(counts, fired, positive)


@exact
def pair_hits(indptr, indices, concept, track, carries, hits, start, stop):
    """hits int64 `[pairs]`: tokens of indices[indptr[p]] … whose source, by track `[tokens]`, carries pair p's concept;
    carries bool `[concepts, tokens]`."""
    for p in range(start, stop):
        row, n = carries[concept[p]], 0
        for j in range(indptr[p], indptr[p + 1]):
            n += row[track[indices[j]]]
        hits[p] = n
