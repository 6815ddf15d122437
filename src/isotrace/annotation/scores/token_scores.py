"""Chosen pairs of feature, threshold and token concept, scored on held-out sequences.

With hits = tokens where the feature fires and the concept is, and a run = consecutive tokens on which it fires:

    f1            per token: precision hits / fired, recall hits / positive
    f1_any        any-hit: share of runs that touch the concept, share of instances touched at least once
    f1_full       full-cover: share of runs wholly inside the concept, share of instances on whose every token it fires
    f1_interplm   as published by InterPLM: token precision with any-hit recall
    f1_intermol   as InterMol states it: token precision with full-cover recall

A precision of a feature that never fires is undefined; F1 is then 0 if the concept is there, NaN if it is not.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from isotrace.datasets.concept_table import ConceptTable

F1S = ("f1", "f1_any", "f1_full", "f1_interplm", "f1_intermol")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Parallel arrays, one entry per pair: feature and concept int64, threshold float32, `level` of that threshold."""

    feature: np.ndarray
    concept: np.ndarray
    level: np.ndarray
    threshold: np.ndarray

    def __len__(self) -> int:
        return len(self.feature)


@dataclass(frozen=True, eq=False)
class Scores:
    """Of every pair: counts int64 and `values[name]` float64; `draws` `[pairs, n_bootstrap]` are token F1s on
    resampled sequences."""

    n_fired: np.ndarray
    n_positive: np.ndarray
    n_instances: np.ndarray
    values: dict[str, np.ndarray]
    draws: np.ndarray


def choose(f1: np.ndarray, thresholds: np.ndarray, *, per_feature: int, per_concept: int) -> Pairs:
    """The best concepts of every feature and the best features of every concept, each with its best threshold.

    `f1 [concepts, features, levels]`, `thresholds [features, levels]`. Pairs with F1 0 are left out.
    """
    level = f1.argmax(2)
    best = np.take_along_axis(f1, level[..., None], 2)[..., 0]
    keep = np.zeros(best.shape, dtype=bool)
    for axis, count in ((0, per_feature), (1, per_concept)):
        count = min(count, best.shape[axis])
        if count:
            order = np.argpartition(-best, count - 1, axis=axis)
            np.put_along_axis(keep, order.take(range(count), axis=axis), True, axis=axis)
    concept, feature = np.nonzero(keep & (best > 0))
    chosen = level[concept, feature]
    return Pairs(feature, concept, chosen, thresholds[feature, chosen])


def score(activations: sparse.csc_matrix, table: ConceptTable, pairs: Pairs, weights: np.ndarray) -> Scores:
    """`activations` CSC `[tokens, features]` and `table` of held-out sequences; `weights [draws, sequences]`
    say how often each sequence is drawn."""
    n = len(pairs)
    counts = np.zeros((3, n), dtype=np.int64)
    values = {name: np.full(n, np.nan) for name in (*F1S, "precision", "recall")}
    drawn = np.ascontiguousarray(weights.T, dtype=np.float32)  # counts: float32 sums of them are exact
    draws = np.full((n, len(weights)), np.nan, dtype=np.float32)
    for concept, rows in _by_concept(pairs):
        columns = _Concept(table, concept)
        per_sequence = np.zeros((2, len(rows), table.n_sequences), dtype=np.float32)
        for i, row in enumerate(rows):
            part = slice(*activations.indptr[pairs.feature[row] : pairs.feature[row] + 2])
            fired = activations.indices[part][activations.data[part] >= pairs.threshold[row]]
            found = columns.score(np.sort(fired))
            counts[:, row] = len(fired), columns.n_positive, columns.n_instances
            for name, value in found.items():
                values[name][row] = value
            per_sequence[0, i] = np.bincount(columns.sequence_of[fired], minlength=table.n_sequences)
            hits = fired[columns.carries[fired]]
            per_sequence[1, i] = np.bincount(columns.sequence_of[hits], minlength=table.n_sequences)
        fired_draws, hit_draws = per_sequence @ drawn
        with np.errstate(invalid="ignore"):
            draws[rows] = 2 * hit_draws / (fired_draws + columns.per_sequence @ drawn)
    return Scores(counts[0], counts[1], counts[2], values, draws)


def _by_concept(pairs: Pairs) -> Iterator[tuple[int, np.ndarray]]:
    order = np.argsort(pairs.concept, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(pairs.concept[order])) + 1):
        if len(rows):
            yield int(pairs.concept[rows[0]]), rows


class _Concept:
    """One concept of a table, ready to be compared with what fires."""

    def __init__(self, table: ConceptTable, concept: int) -> None:
        instances = slice(table.concept_ptr[concept], table.concept_ptr[concept + 1] + 1)
        bounds = table.instance_ptr[instances]
        self.tokens, self.starts = table.tokens[bounds[0] : bounds[-1]], bounds[:-1] - bounds[0]
        self.sizes = np.diff(bounds)
        self.carries = np.zeros(table.n_tokens, dtype=bool)
        self.carries[self.tokens] = True
        self.sequence_of = table.sequence_of
        self.per_sequence = np.bincount(
            self.sequence_of[self.carries.nonzero()[0]], minlength=table.n_sequences
        ).astype(np.float32)
        self.n_positive, self.n_instances = int(self.carries.sum()), len(self.sizes)
        self._fires = np.zeros(table.n_tokens, dtype=bool)

    def score(self, fired: np.ndarray) -> dict[str, float]:
        """`fired`: tokens, ascending."""
        carried = self.carries[fired]
        hits = int(carried.sum())
        self._fires[fired] = True
        covered = np.add.reduceat(self._fires[self.tokens], self.starts, dtype=np.int64) if self.n_instances else 0
        self._fires[fired] = False
        any_recall = _share(int(np.count_nonzero(covered)), self.n_instances)
        full_recall = _share(int(np.count_nonzero(covered == self.sizes)), self.n_instances)
        if len(fired):
            first = np.flatnonzero(
                np.diff(fired, prepend=-2) + np.diff(self.sequence_of[fired], prepend=-1).astype(bool) != 1
            )
            runs_hit = np.maximum.reduceat(carried, first).mean()
            runs_inside = np.minimum.reduceat(carried, first).mean()
        else:
            runs_hit = runs_inside = np.nan
        precision, recall = _share(hits, len(fired)), _share(hits, self.n_positive)
        return {
            "precision": precision,
            "recall": recall,
            "f1": _f1(precision, recall),
            "f1_any": _f1(runs_hit, any_recall),
            "f1_full": _f1(runs_inside, full_recall),
            "f1_interplm": _f1(precision, any_recall),
            "f1_intermol": _f1(precision, full_recall),
        }


def _share(part: float, whole: float) -> float:
    return part / whole if whole else np.nan


def _f1(precision: float, recall: float) -> float:
    if np.isnan(recall):
        return np.nan
    return 0.0 if np.isnan(precision) or precision + recall == 0 else 2 * precision * recall / (precision + recall)
