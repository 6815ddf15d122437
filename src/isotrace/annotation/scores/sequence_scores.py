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
from isotrace.stats.bootstrap import interval
from isotrace.stats.metrics import Truth

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
    `[draws, sequences]` say how often each sequence is drawn."""
    columns = sparse.csc_matrix(pooled)
    columns.eliminate_zeros()
    found = np.full((8, len(pairs)), np.nan)
    for concept in np.unique(pairs.concept):
        known = np.flatnonzero(~np.isnan(numbers[:, concept]))
        place = np.full(len(numbers), -1)
        place[known] = np.arange(len(known))
        y, is_class = numbers[known, concept], concepts[concept].kind == "class"
        truth = Truth(y, np.concatenate([np.ones((1, len(known))), weights[:, known]]), is_class)
        for pair in np.flatnonzero(pairs.concept == concept):
            part = slice(*columns.indptr[pairs.feature[pair] : pairs.feature[pair] + 2])
            rows = place[columns.indices[part]]
            effects, constant = truth.effects(rows[rows >= 0], columns.data[part][rows >= 0])
            values = (1 + effects) / 2 if is_class else effects
            found[0, pair] = np.nan if constant[0] else values[0]
            if not np.isnan(found[0, pair]):
                found[1:3, pair] = interval(values[1:], defined=0)
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
