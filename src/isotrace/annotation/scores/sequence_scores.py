"""Chosen pairs of a feature and a class or value, scored on held-out sequences.

AUROC or Spearman's rho with a 95 % percentile interval over resampled sequences, and for a class the odds ratio of
firing anywhere in the sequence, 0.5 added to every cell (Haldane 1956; Anscombe 1956), with the interval of its
logarithm (Woolf 1955).

A resample without a second class or a second value is left out; one on which the feature is the same everywhere counts
as no association (AUROC 0.5, rho 0), or the intervals of rare features would leave out just the draws without them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from isotrace.annotation.scores.sequence_level import SequencePairs
from isotrace.domains.domain import Concept

Z95 = 1.959963984540054


@dataclass(frozen=True, eq=False)
class SequenceScores:
    """float64 `[pairs]`. `value` is AUROC of a class (not folded: below 0.5 the feature speaks against it) and rho of a
    value, NaN where not defined; `n_known` sequences count, `n_positive` of them with the class (NaN for a value)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    odds_ratio: np.ndarray
    odds_low: np.ndarray
    odds_high: np.ndarray
    n_known: np.ndarray
    n_positive: np.ndarray


def score(
    pooled: sparse.csr_matrix,
    numbers: np.ndarray,
    concepts: Sequence[Concept],
    pairs: SequencePairs,
    weights: np.ndarray,
) -> SequenceScores:
    """pooled CSR `[sequences, features]` and numbers float64 `[sequences, concepts]` of the held-out side; weights
    `[sequences, draws]` say how often each sequence is drawn (`scores.bootstrap_weights`)."""
    columns = sparse.csc_matrix(pooled)
    columns.eliminate_zeros()
    found = np.full((8, len(pairs)), np.nan)
    for concept in np.unique(pairs.concept):
        known = np.flatnonzero(~np.isnan(numbers[:, concept]))
        place = np.full(len(numbers), -1)
        place[known] = np.arange(len(known))
        y, is_class = numbers[known, concept], concepts[concept].kind == "class"
        target = _Target(y, np.column_stack([np.ones(len(known)), weights[known]]).astype(np.float64), is_class)
        for pair in np.flatnonzero(pairs.concept == concept):
            part = slice(*columns.indptr[pairs.feature[pair] : pairs.feature[pair] + 2])
            rows = place[columns.indices[part]]
            effects, constant = target.effects(rows[rows >= 0], columns.data[part][rows >= 0])
            values = (1 + effects) / 2 if is_class else effects
            found[0, pair] = np.nan if constant else values[0]
            draws = values[1:][~np.isnan(values[1:])]
            if len(draws) and not np.isnan(found[0, pair]):
                found[1:3, pair] = np.quantile(draws, (0.025, 0.975))
            if is_class:
                fired = np.zeros(len(known), dtype=bool)
                fired[rows[rows >= 0]] = True
                found[3:6, pair] = odds_ratio(fired, y == 1)
                found[7, pair] = (y == 1).sum()
            found[6, pair] = len(known)
    return SequenceScores(*found)


def odds_ratio(fired: np.ndarray, positive: np.ndarray) -> tuple[float, float, float]:
    """(odds ratio, 95 % low, high) of two bool arrays; NaN if either is the same everywhere."""
    if len(np.unique(fired)) < 2 or len(np.unique(positive)) < 2:
        return np.nan, np.nan, np.nan
    cells = np.asarray([[np.sum(fired & positive), np.sum(fired & ~positive)],
                        [np.sum(~fired & positive), np.sum(~fired & ~positive)]]) + 0.5  # fmt: skip
    log = np.log(cells[0, 0]) + np.log(cells[1, 1]) - np.log(cells[0, 1]) - np.log(cells[1, 0])
    error = Z95 * np.sqrt((1 / cells).sum())
    return float(np.exp(log)), float(np.exp(log - error)), float(np.exp(log + error))


class _Target:
    """One concept on its known sequences, every column of `weights` float64 `[K, draws]` a resample of them."""

    def __init__(self, y: np.ndarray, weights: np.ndarray, is_class: bool) -> None:
        weights = np.ascontiguousarray(weights)  # rows of it are gathered for every feature
        self.weights, self.size, self.is_class = weights, weights.sum(0), is_class
        if not is_class:
            order = np.argsort(y, kind="stable")
            groups = _sum(weights[order], y[order])
            y = _mid_ranks(groups)[np.unique(y, return_inverse=True)[1]]
        else:
            y = np.repeat(y[:, None], weights.shape[1], axis=1)
        with np.errstate(invalid="ignore"):
            self.centred = weights * (y - (weights * y).sum(0) / self.size)
        self.spread = (self.centred * y).sum(0)
        self.n_pairs = (weights * y).sum(0) * (weights * (1 - y)).sum(0)

    def effects(self, rows: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, bool]:
        """Somers' D or rho `[draws]` of a feature that is `values` on `rows` and 0 elsewhere; if it is constant."""
        order = np.argsort(values, kind="stable")
        rows, values = rows[order], values[order]
        groups, covered = _sum(self.weights[rows], values), _sum(self.centred[rows], values)
        if len(rows) < len(self.weights):
            # The centred numbers sum to zero, so those of the sequences left over are minus the others.
            at = np.searchsorted(np.unique(values), 0)
            groups = np.insert(groups, at, self.size - groups.sum(0), axis=0)
            covered = np.insert(covered, at, -covered.sum(0), axis=0)
        ranks = _mid_ranks(groups) - (self.size + 1) / 2
        covariance, spread = np.einsum("gd,gd->d", ranks, covered), np.einsum("gd,gd,gd->d", groups, ranks, ranks)
        scale = self.n_pairs / 2 if self.is_class else np.sqrt(spread * self.spread)
        flat = spread < 0.1  # a second value gives at least 1/2
        defined = self.n_pairs > 0 if self.is_class else self.spread > 0.1
        effect = np.divide(covariance, scale, out=np.zeros_like(scale), where=defined & ~flat)
        return np.where(defined, effect, np.nan), bool(flat[0])


def _sum(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`[distinct values, draws]`: sums of the rows of `weights` over equal `values`, which are ascending."""
    if not len(values):
        return np.zeros((0, weights.shape[1]))
    return np.add.reduceat(weights, np.flatnonzero(np.r_[True, values[1:] != values[:-1]]), axis=0)


def _mid_ranks(groups: np.ndarray) -> np.ndarray:
    """Rank in every resample of groups `[groups, draws]` of tied members, ascending."""
    return np.cumsum(groups, axis=0) - groups / 2 + 0.5
