"""Features against classes and values of whole sequences: pooled, chosen on one side, scored on the other.

1. pool      a sequence's activation of a feature is its largest or its mean one over the tokens
2. effects   all pairs: Somers' D = 2 · AUROC − 1 for a class (Mann and Whitney 1947), Spearman's rho for a value
3. select    the best pairs of the selection side, with their direction
4. nulls     numbers shuffled among sequences of like length: the largest effect of each concept over all features
             (Westfall and Young 1993, max-T), and that of single pairs

`sequence_scores` scores chosen pairs on the held-out side.

Both effects are a covariance of ranks over a scale. Ranks (ties share their mean) are kept as twice the rank, less that
of the zeros: whole numbers, sparse where activations are. Sums of them are exact, in float32 as far as 2^24 and in
float64 to 2^53, so that results do not depend on how they are divided into blocks and ties between an observed and a
shuffled effect are ties.

A sequence where a number is NaN is left out for that concept. An effect that is not defined (one class only, the same
value or the same activation everywhere) is NaN. Sequences count as independent: near copies make p too small.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse, stats

from isotrace.base.errors import InputError
from isotrace.domains.domain import Concept
from isotrace.stats.permutation import donors

POOLED_ENTRIES = 4_000_000  # activations pooled at a time


def pool(activations: sparse.csr_matrix, sequence_ptr: np.ndarray, how: str) -> sparse.csr_matrix:
    """float32 `[sequences, features]`: `max` or `mean` over the tokens sequence_ptr[s] … sequence_ptr[s + 1].

    `activations` CSR `[tokens, features]`, never negative; tokens without an entry count as 0. InputError for another
    `how` or a negative activation.
    """
    if how not in ("max", "mean"):
        raise InputError(f"pooling {how!r} is not known: give max or mean.")
    if len(activations.data) and activations.data.min() < 0:
        raise InputError("an activation is negative: give what is left of it above zero.")
    lengths, n_features = np.diff(sequence_ptr), activations.get_shape()[1]
    ends = activations.indptr[sequence_ptr]
    blocks, start = [], 0
    while start < len(lengths):
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + POOLED_ENTRIES, side="right")) - 1)
        # By feature, then by token, without sorting: the entries of one feature in one sequence lie together.
        rows = slice(sequence_ptr[start], sequence_ptr[stop])
        columns = sparse.csc_matrix(activations[rows])
        columns.sort_indices()
        feature = np.repeat(np.arange(n_features), np.diff(columns.indptr))
        owner = np.repeat(np.arange(stop - start), lengths[start:stop])[columns.indices]
        first = np.flatnonzero((np.diff(feature, prepend=-1) != 0) | (np.diff(owner, prepend=-1) != 0))
        values = columns.data
        if how == "max":
            data = np.maximum.reduceat(values, first) if len(first) else values
        else:
            data = np.add.reduceat(values, first, dtype=np.float64) if len(first) else values
            data = data / lengths[start:stop][owner[first]]
        where = owner[first], feature[first]
        blocks.append(sparse.csr_matrix((data.astype(np.float32), where), shape=(stop - start, n_features)))
        start = stop
    found = sparse.csr_matrix(sparse.vstack([sparse.csr_matrix((0, n_features), dtype=np.float32), *blocks]))
    found.eliminate_zeros()
    return found


@dataclass(frozen=True, eq=False)
class SequencePairs:
    """Parallel arrays, one entry per pair: feature and concept int64; `effect` float64 on the side it was chosen on."""

    feature: np.ndarray
    concept: np.ndarray
    effect: np.ndarray

    def __len__(self) -> int:
        return len(self.feature)


@dataclass(frozen=True, eq=False)
class Block:
    """Concepts of one kind that are known of the same sequences.

    known: int64 `[K]`; concepts: int64 `[c]`.
    ranks: CSC float64 `[K, F]`, whole numbers (see the module); total: their sums `[F]`.
    numbers: float64 `[K, c]`, 0 or 1 of a class, twice the rank of a value; mean `[c]`.
    feature_scale `[F]` and concept_scale `[c]` turn a covariance into an effect, NaN where it is not defined.
    """

    known: np.ndarray
    concepts: np.ndarray
    ranks: sparse.csc_matrix
    total: np.ndarray
    numbers: np.ndarray
    feature_scale: np.ndarray
    concept_scale: np.ndarray

    def scaled(self, products: np.ndarray, mean: np.ndarray, features: slice | np.ndarray) -> np.ndarray:
        """Effects before `concept_scale`, from products float64 `[features, columns]` of ranks and numbers."""
        return (products - self.total[features, None] * mean) * self.feature_scale[features, None]


def blocks(pooled: sparse.csr_matrix, numbers: np.ndarray, concepts: Sequence[Concept]) -> Iterator[Block]:
    if numbers.shape != (pooled.get_shape()[0], len(concepts)):
        raise InputError(
            f"numbers {numbers.shape} must be [{pooled.get_shape()[0]} sequences, {len(concepts)} concepts]."
        )
    groups: dict[tuple[str, bytes], list[int]] = {}
    for i, concept in enumerate(concepts):
        if concept.kind == "class" and not np.isin(numbers[~np.isnan(numbers[:, i]), i], (0, 1)).all():
            raise InputError(f"class {concept.name!r} holds another number than 0 or 1: declare it a value.")
        groups.setdefault((concept.kind, np.isnan(numbers[:, i]).tobytes()), []).append(i)
    for (kind, _), members in groups.items():
        known = np.flatnonzero(~np.isnan(numbers[:, members[0]]))
        if not len(known):
            continue
        ranks, constant = _ranks(sparse.csc_matrix(pooled[known]))
        total = np.asarray(ranks.sum(axis=0)).ravel()
        y, n = numbers[known][:, members], len(known)
        if kind == "value":
            y = 2 * stats.rankdata(y, axis=0)
            squares = np.asarray(ranks.multiply(ranks).sum(axis=0)).ravel()
            spread, y_spread = squares - total**2 / n, (y**2).sum(0) - y.sum(0) ** 2 / n
            feature_scale = 1 / np.sqrt(np.where(constant, np.nan, spread))
            concept_scale = 1 / np.sqrt(np.where(np.ptp(y, axis=0) == 0, np.nan, y_spread))
        else:
            n_pairs = y.sum(0) * (1 - y).sum(0)
            feature_scale, concept_scale = np.where(constant, np.nan, 1.0), 1 / np.where(n_pairs == 0, np.nan, n_pairs)
        yield Block(known, np.asarray(members), ranks, total, y, feature_scale, concept_scale)


def _ranks(pooled: sparse.csc_matrix) -> tuple[sparse.csc_matrix, np.ndarray]:
    """Twice the mid-ranks within each column less that of the zeros, and bool `[F]`: the column is constant."""
    pooled.eliminate_zeros()
    n, n_features = pooled.get_shape()
    sizes = np.diff(pooled.indptr)
    column = np.repeat(np.arange(n_features), sizes)
    order = np.lexsort((pooled.data, column))
    values = pooled.data[order]
    # The order keeps columns where they were, so `column` is right before and after it.
    first = np.ones(len(values), dtype=bool)
    first[1:] = (column[1:] != column[:-1]) | (values[1:] != values[:-1])
    starts = np.flatnonzero(first)
    ends = np.append(starts[1:], len(values))
    tie = np.cumsum(first) - 1
    place = (starts + ends + 1)[tie] - 2 * pooled.indptr[column].astype(np.int64)  # among the entries
    zeros = n - sizes
    below = np.bincount(column[values < 0], minlength=n_features)
    place += np.where(values > 0, 2 * zeros[column], 0) - (2 * below + zeros + 1)[column]
    ranks = np.empty(len(values))
    ranks[order] = place
    ties = np.bincount(column[starts], minlength=n_features)
    constant = (ties + (zeros > 0)) <= 1
    return sparse.csc_matrix((ranks, pooled.indices, pooled.indptr), shape=(n, n_features)), constant


def effects(pooled: sparse.csr_matrix, numbers: np.ndarray, concepts: Sequence[Concept]) -> np.ndarray:
    """float64 `[features, concepts]`: 2 · AUROC − 1 of a class, Spearman's rho of a value, NaN where not defined.

    numbers: float64 `[sequences, concepts]` as in `ConceptTable.numbers`. InputError if shapes disagree or a class
    holds another number than 0, 1 and NaN.
    """
    out = np.full((pooled.get_shape()[1], len(concepts)), np.nan)
    for block in blocks(pooled, numbers, concepts):
        products = block.ranks.T @ block.numbers
        mean = block.numbers.mean(0)
        out[:, block.concepts] = block.scaled(products, mean, slice(None)) * block.concept_scale
    return out


def undefined(pooled: sparse.csr_matrix, numbers: np.ndarray, kind: str) -> str | None:
    """Why the effect of one feature `[sequences, 1]` on one concept `[sequences]` is NaN; None if it is a number."""
    known = ~np.isnan(numbers)
    if len(np.unique(numbers[known])) < 2:
        fault = "one class only" if kind == "class" else "the same value everywhere"
        return fault if known.any() else "not known of any sequence"
    return "the feature is the same on every sequence" if len(np.unique(pooled[known].toarray())) < 2 else None


def select(effect: np.ndarray, *, per_feature: int, per_concept: int) -> SequencePairs:
    """The pairs with the largest absolute effect of every feature and of every concept.

    effect: float64 `[features, concepts]` of the selection side; pairs where it is NaN or 0 are never chosen.
    """
    size = np.nan_to_num(np.abs(effect))
    keep = np.zeros(size.shape, dtype=bool)
    for axis, wanted in ((1, per_feature), (0, per_concept)):
        count = min(wanted, size.shape[axis])
        if count:
            best = np.argsort(-size, axis=axis, kind="stable").take(range(count), axis=axis)
            np.put_along_axis(keep, best, True, axis=axis)
    feature, concept = np.nonzero(keep & (size > 0))
    return SequencePairs(feature, concept, effect[feature, concept])


def null_maxima(
    pooled: sparse.csr_matrix,
    numbers: np.ndarray,
    concepts: Sequence[Concept],
    strata: np.ndarray,
    *,
    n_permutations: int,
    seed: int,
    start: int = 0,
    memory: int = 256 << 20,
) -> np.ndarray:
    """float64 `[n_permutations, concepts]`: the largest absolute effect over all features after permutations start,
    start + 1, …; parts of a run put together are the run. NaN for a concept without an effect.

    strata: int `[sequences]`, between whose members numbers may be exchanged (`permutation.strata` of the lengths).
    memory: bytes for dense blocks, which the result does not depend on.
    """
    out = np.full((n_permutations, len(concepts)), np.nan)
    for block in blocks(pooled, numbers, concepts):
        (n, n_features), width = block.ranks.get_shape(), len(block.concepts)
        largest = abs(block.ranks).sum(axis=0).max() * np.abs(block.numbers).max() if n_features else 0
        kind = np.dtype(np.float32 if largest <= 2**24 else np.float64)
        rows = max(1, min(n_features, memory // (4 * n * kind.itemsize)))
        at_once = max(1, min(n_permutations, memory // (32 * rows * width)))
        scale, mean = np.nan_to_num(block.feature_scale), block.numbers.mean(0)
        numbered = block.numbers.astype(kind)
        for first in range(0, n_permutations, at_once):
            some = range(first, min(first + at_once, n_permutations))
            shuffled = np.stack([numbered[_shuffle(block.known, strata, seed, start + i)] for i in some], axis=1)
            best = np.zeros((len(some), width))
            for low in range(0, n_features, rows):
                part = slice(low, low + rows)
                dense = np.ascontiguousarray(block.ranks[:, part].T.toarray(), dtype=kind)
                products = (dense @ shuffled.reshape(n, -1)).astype(np.float64).reshape(-1, len(some), width)
                products -= (block.total[part, None] * mean)[:, None]
                products *= scale[part, None, None]
                np.maximum(best, np.abs(products, out=products).max(axis=0), out=best)
            out[np.ix_(np.asarray(some), block.concepts)] = best * block.concept_scale
    return out


def pair_null(
    pooled: sparse.csr_matrix,
    numbers: np.ndarray,
    concepts: Sequence[Concept],
    pairs: SequencePairs,
    strata: np.ndarray,
    *,
    n_permutations: int,
    seed: int,
    start: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(observed float64 `[pairs]`, null float64 `[n_permutations, pairs]`): effects in the direction that each pair had
    where it was chosen (negative if it turned round), as measured and after permutations start, start + 1, …"""
    observed = np.full(len(pairs), np.nan)
    null = np.full((n_permutations, len(pairs)), np.nan)
    sign = np.sign(pairs.effect)
    for block in blocks(pooled, numbers, concepts):
        n = len(block.known)
        orders = [np.arange(n), *(_shuffle(block.known, strata, seed, start + i) for i in range(n_permutations))]
        draws = np.stack(orders, axis=1)
        for column, concept in enumerate(block.concepts):
            at = np.flatnonzero(pairs.concept == concept)
            chosen, y = pairs.feature[at], block.numbers[:, column]
            products = block.ranks[:, chosen].T @ y[draws]
            effect = block.scaled(products, y.mean(), chosen) * block.concept_scale[column]
            effect *= sign[at, None]
            observed[at], null[:, at] = effect[:, 0], effect[:, 1:].T
    return observed, null


def _shuffle(known: np.ndarray, strata: np.ndarray, seed: int, index: int) -> np.ndarray:
    """int64 `[K]`: whose number each known sequence is given by permutation `index`, which (seed, index) decide."""
    key = np.random.default_rng([seed, index]).random(len(strata))
    return donors(strata[known], key[known])
