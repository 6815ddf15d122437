"""Every feature against every concept, counted at several thresholds in one pass over what is active.

1. thresholds   of each feature, quantiles of its positive activations
2. fire         every activation becomes the highest threshold it reaches
3. count        per concept and feature: tokens with the concept, and instances of it, where the feature fires
4. F1           per token, and as InterPLM mixes units
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from scipy import sparse

from isotrace.base.errors import InputError
from isotrace.datasets.concept_table import ConceptTable
from isotrace.kernels import MissingExtraError
from isotrace.kernels.backend import has_numba

Backend = Literal["auto", "numpy", "numba"]
MAX_TOKENS = 2**30  # twice as many still fit in int32
BLOCK = 2**21  # activations put in levels at a time


def use_numba(backend: Backend) -> bool:
    """ "auto" is Numba where it is installed, else NumPy and SciPy.

    Raises MissingExtraError when Numba is asked for and absent, ValueError for an unknown name.
    """
    if backend not in ("auto", "numpy", "numba"):
        raise ValueError(f"unknown backend {backend!r}: 'auto', 'numpy' or 'numba'")
    if backend == "numba" and not has_numba():
        raise MissingExtraError(
            "the numba backend is not installed: pip install 'isotrace[fast]', or use backend='numpy'."
        )
    return backend != "numpy" and has_numba()


@dataclass(frozen=True, eq=False)
class Firing:
    """Activations `[tokens, features]` reduced to levels, CSR by token: those of token t are indptr[t] … indptr[t + 1].

    indptr: int64 `[tokens + 1]`.
    feature: int32 `[nnz]`, none twice in a token.
    level: uint8 `[nnz]`; level l: the activation reaches thresholds 0 … l of its feature, and not l + 1.
    """

    indptr: np.ndarray
    feature: np.ndarray
    level: np.ndarray
    n_features: int
    n_levels: int

    @property
    def n_tokens(self) -> int:
        return len(self.indptr) - 1

    def fired(self) -> np.ndarray:
        """int64 `[features, levels]`: tokens where the feature is at the level or above."""
        counts = np.zeros((self.n_levels, self.n_features), dtype=np.int64)
        for level in range(self.n_levels):
            counts[level] = np.bincount(self.feature[self.level == level], minlength=self.n_features)
        return np.ascontiguousarray(counts[::-1].cumsum(axis=0)[::-1].T)

    def at_least(self, level: int) -> sparse.csr_matrix:
        """CSR `[tokens, features]`, int32: 1 where the feature is at `level` or above."""
        keep = self.level >= level
        indptr = _kept(self.indptr, keep)
        entries = np.ones(indptr[-1], dtype=np.int32)
        return sparse.csr_matrix((entries, self.feature[keep], indptr), shape=(self.n_tokens, self.n_features))


@dataclass(frozen=True, eq=False)
class Counts:
    """How often features fire where concepts are. A feature fires at level l where it reaches its threshold l.

    fired: int64 `[features, levels]`, tokens where the feature fires.
    hits: int32 `[concepts, features, levels]`, those of them with the concept (each token once).
    touched: int32 `[concepts, features, levels]`, instances of the concept with such a token.
    positive: int64 `[concepts]`, tokens with the concept.
    n_instances: int64 `[concepts]`.
    """

    fired: np.ndarray
    hits: np.ndarray
    touched: np.ndarray
    positive: np.ndarray
    n_instances: np.ndarray


def thresholds(activations: sparse.csr_matrix, quantiles: Sequence[float]) -> np.ndarray:
    """float32 `[features, len(quantiles)]`, in units of the activations (CSR float32 `[tokens, features]`).

    Of a feature with n positive activations, quantile q is the one of rank ⌈q (n - 1)⌉, counted from 0. Quantile 0
    stands for any positive activation: the smallest positive float. A feature that is never active has +inf.

    Raises ValueError if quantiles do not ascend within [0, 1], and InputError for an activation that is negative or
    not finite.
    """
    if not quantiles or not all(0 <= q <= 1 for q in quantiles) or any(a >= b for a, b in pairwise(quantiles)):
        raise ValueError(f"quantiles {list(quantiles)} must ascend within [0, 1]")
    _check(activations)
    by_feature = sparse.csc_matrix(activations)
    found = np.full((len(by_feature.indptr) - 1, len(quantiles)), np.inf, dtype=np.float32)
    for f, (start, stop) in enumerate(pairwise(by_feature.indptr)):
        values = by_feature.data[start:stop]
        values = values[values > 0]
        if len(values):
            ranks = [int(np.ceil(q * (len(values) - 1))) for q in quantiles]
            found[f] = np.partition(values, ranks)[ranks]
            if quantiles[0] == 0:
                found[f, 0] = np.nextafter(np.float32(0), np.float32(1))
    return found


def fire(activations: sparse.csr_matrix, thresholds: np.ndarray) -> Firing:
    """Levels of activations (CSR float32 `[tokens, features]`, no entry twice) by thresholds `[features, levels]`,
    ascending. Activations below their first threshold, and zeros, are left out.

    Raises InputError if shapes disagree, or for an activation that is negative or not finite.
    """
    shape: tuple[int, int] = activations.get_shape()
    n_tokens, n_features = shape
    if len(thresholds) != n_features or not 0 < thresholds.shape[1] < 256 or n_tokens > MAX_TOKENS:
        raise InputError(
            f"activations {shape} and thresholds {thresholds.shape} do not fit: give one row of "
            f"thresholds per feature, 1 to 255 levels and up to {MAX_TOKENS} tokens."
        )
    _check(activations)
    n_reached = np.empty(activations.nnz, dtype=np.uint8)
    for start in range(0, activations.nnz, BLOCK):
        part = slice(start, start + BLOCK)
        feature, value = activations.indices[part], activations.data[part]
        reached = n_reached[part]
        reached[:] = 0
        for column in np.ascontiguousarray(thresholds.T):
            reached += value >= column[feature]
        reached[value == 0] = 0
    keep = n_reached > 0
    feature = activations.indices[keep].astype(np.int32, copy=False)
    indptr = _kept(activations.indptr, keep)
    return Firing(indptr, feature, n_reached[keep] - np.uint8(1), n_features, thresholds.shape[1])


def _kept(indptr: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """int64: `indptr` after the entries that are not kept have gone."""
    return indptr - np.searchsorted(np.flatnonzero(~keep), indptr)


def _check(activations: sparse.csr_matrix) -> None:
    if activations.nnz and not (activations.data.min() >= 0 and activations.data.max() < np.inf):
        raise InputError("an activation is negative or not finite: give the dictionary's activations after its rule.")


def check_tokens(firing: Firing, table: ConceptTable) -> None:
    if firing.n_tokens != table.n_tokens:
        raise InputError(
            f"activations of {firing.n_tokens} tokens and concepts of {table.n_tokens}: give the same tokens."
        )


def count(firing: Firing, table: ConceptTable, concepts: slice = slice(None), *, backend: Backend = "auto") -> Counts:
    """Counts of a stretch of `table.token_concepts` (a slice of step 1), all by default.

    8 · concepts · features · levels bytes. Raises InputError if the tokens disagree, and as `use_numba`.
    """
    check_tokens(firing, table)
    first, stop, step = concepts.indices(len(table.token_concepts))
    if step != 1:
        raise ValueError(f"{concepts} must be a slice of step 1")
    n, shape = max(stop - first, 0), (firing.n_features, firing.n_levels)
    hits, touched = np.empty((2, n, *shape), dtype=np.int32)
    counts = Counts(
        firing.fired(), hits, touched, np.zeros(n, dtype=np.int64), np.diff(table.concept_ptr)[first : first + n]
    )
    (_count_numba if use_numba(backend) else _count_plain)(firing, table, first, counts)
    return counts


def _count_numba(firing: Firing, table: ConceptTable, first: int, counts: Counts) -> None:
    from isotrace.annotation.scores import counting_jit
    from isotrace.kernels import cpu

    feature = firing.feature.astype(np.uint16 if firing.n_features <= 2**16 else np.uint32)
    inputs = (
        firing.indptr.astype(np.uint64),
        feature,
        firing.level,
        table.tokens,
        table.instance_ptr,
        table.concept_ptr,
        first,
    )

    def run(start: int, stop: int) -> None:
        seen = np.full(firing.n_tokens, -1, dtype=np.int32)
        counting_jit.count(*inputs, counts.hits, counts.touched, counts.positive, seen, start, stop)

    members = table.instance_ptr[table.concept_ptr[first : first + len(counts.positive) + 1]]
    cpu.parallel(run, cpu.by_pairs(members - members[0]))


def _count_plain(firing: Firing, table: ConceptTable, first: int, counts: Counts) -> None:
    for level in range(firing.n_levels):
        fires = firing.at_least(level)
        for c in range(len(counts.positive)):
            bounds = table.instance_ptr[table.concept_ptr[first + c] : table.concept_ptr[first + c + 1] + 1]
            members = table.tokens[bounds[0] : bounds[-1]]
            shape = len(bounds) - 1, firing.n_tokens
            instances = sparse.csr_matrix((np.ones_like(members), members, bounds - bounds[0]), shape=shape)
            tokens = np.unique(members)
            counts.positive[c] = len(tokens)
            counts.hits[c, :, level] = sparse.csr_matrix(fires[tokens]).getnnz(axis=0)
            counts.touched[c, :, level] = sparse.csr_matrix(instances @ fires).getnnz(axis=0)


def token_f1(counts: Counts) -> np.ndarray:
    """float32 `[concepts, features, levels]`: 2 · hits / (fired + positive), F1 over tokens; 0/0 = 0."""
    f1 = np.empty(counts.hits.shape, dtype=np.float32)
    for c, hits in enumerate(counts.hits):
        f1[c] = (2 * hits).astype(np.float32) / np.maximum(counts.fired + counts.positive[c], 1).astype(np.float32)
    return f1


def interplm_f1(counts: Counts) -> np.ndarray:
    """float32 `[concepts, features, levels]`: the harmonic mean of precision over tokens, hits / fired, and any-hit
    recall over instances, touched / n_instances; 0/0 = 0. Source: Simon and Zou, InterPLM, Nature Methods 2025."""
    f1 = np.empty(counts.hits.shape, dtype=np.float32)
    fired = np.maximum(counts.fired, 1)
    for c, (hits, touched) in enumerate(zip(counts.hits, counts.touched, strict=True)):
        precision, recall = hits / fired, touched / max(counts.n_instances[c], 1)
        total = precision + recall
        f1[c] = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)
    return f1
