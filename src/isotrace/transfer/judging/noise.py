"""How sure an outcome is: a bootstrap over the scaffolds of the test part and over seeds; and its ceiling.

A predictor cannot agree with an outcome better than the outcome does with itself: the test part is halved by scaffold
many times, checkpoints are ranked on either half, and Spearman and Brown's formula (1910) gives the reliability 2r/(1 +
r) of the whole from r of the halves. Its root is the most that a perfect predictor can be expected to reach.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isotrace.base.errors import InputError
from isotrace.base.settings import child_seed
from isotrace.stats.bootstrap import bootstrap_weights, group_weights, interval
from isotrace.stats.metrics import METRICS, spearman
from isotrace.stats.splits import deal

LEAST_SPLITS, LEAST_CHECKPOINTS = 50, 4
APART = 0.3
"""Ceiling below which the checkpoints of a task cannot be told from one another."""


@dataclass(frozen=True)
class Ceiling:
    """value: √(2r/(1 + r)) of `r_half`, the mean over splits of Spearman over checkpoints on the halves. low, high: its
    95 % bootstrap over checkpoints. reason: why there is none; the numbers are NaN then."""

    value: float
    low: float
    high: float
    r_half: float
    n_splits: int
    n_checkpoints: int
    reason: str | None = None

    @property
    def apart(self) -> bool:
        """Whether the task is listed apart: nothing shows that its checkpoints differ."""
        return not self.value >= APART


def seed_draws(
    outputs: np.ndarray, y: np.ndarray, groups: Sequence[str], metric: str, n_draws: int, seed: int
) -> np.ndarray:
    """`[1 + n_draws]`: the metric's mean over seeds, then of draws of scaffolds and of seeds. Outcomes of one test part
    with the same `seed` are drawn on the same scaffolds, so that their differences are paired.

    outputs: predictions `[seeds, n, outputs]` of the test part. y: labels `[n]`. groups: scaffolds `[n]`.
    """
    weights = group_weights(groups, n_draws, (seed, 1))
    values = np.stack([METRICS[metric](one, y, weights) for one in outputs])
    drawn = bootstrap_weights(len(outputs), n_draws, (seed, 2)) if len(outputs) > 1 else np.ones((n_draws, 1))
    return (np.concatenate([np.ones((1, len(outputs))), drawn]).T * values).mean(0)


def halves(
    outputs: np.ndarray, y: np.ndarray, groups: Sequence[str], metric: str, n_splits: int, seed: int
) -> np.ndarray:
    """`[2, splits, checkpoints]`: the metric's mean over seeds on either half of the scaffolds; outputs `[checkpoints,
    seeds, n, outputs]`. Splits with a half on which it is not defined (one class only) are left out."""
    parts = np.stack([deal(groups, (0.5, 0.5), child_seed(seed, i)) for i in range(n_splits)])
    weights = np.concatenate([parts == 0, parts == 1]).astype(np.float64)
    score = METRICS[metric]
    found = np.stack([np.mean([score(one, y, weights) for one in own], 0) for own in outputs], 1)
    both = found.reshape(2, n_splits, -1)
    return both[:, np.isfinite(both).all((0, 2))]


def ceiling(both: np.ndarray, seed: int, n_draws: int = 1_000) -> Ceiling:
    """Of `halves`. The r of the halves is averaged before its root is taken: roots of single splits are missing where
    their r is negative, and the mean of the others would flatter."""
    _, n_splits, n = both.shape

    def none(r: float, reason: str) -> Ceiling:
        return Ceiling(np.nan, np.nan, np.nan, r, n_splits, n, reason)

    if n < LEAST_CHECKPOINTS:
        return none(np.nan, f"{n} checkpoints, and a rank over them needs {LEAST_CHECKPOINTS}")
    if n_splits < LEAST_SPLITS:
        return none(np.nan, f"{n_splits} splits with a metric on both halves, and {LEAST_SPLITS} are needed")
    weights = np.concatenate([np.ones((1, n)), bootstrap_weights(n, n_draws, (seed, 3))])
    drawn = np.stack([spearman(a[:, None], b, weights) for a, b in zip(*both, strict=True)])
    r = drawn.mean(0)
    if not np.isfinite(r[0]):
        return none(np.nan, "all checkpoints are equal on a half")
    if r[0] <= 0:
        return none(float(r[0]), f"the halves do not agree on the checkpoints (r {r[0]:.2f})")
    low, high = interval(r[1:])
    # A reliability is not negative: where the interval of r begins below 0, that of the ceiling begins at 0.
    low, high = (0.0 if end <= 0 else _whole(end) for end in (low, high))
    return Ceiling(_whole(float(r[0])), low, high, float(r[0]), n_splits, n)


def _whole(r: float) -> float:
    return float(np.sqrt(2 * r / (1 + r)))


def task_ceiling(
    outputs: np.ndarray, y: np.ndarray, groups: Sequence[str], metric: str, seed: int, n_splits: int = 100,
    n_draws: int = 1_000,
) -> Ceiling:  # fmt: skip
    """See `halves` and `ceiling`. Raises InputError for fewer than LEAST_SPLITS splits, and for one scaffold."""
    if n_splits < LEAST_SPLITS:
        raise InputError(f"{n_splits} splits make no ceiling: give at least {LEAST_SPLITS}.")
    return ceiling(halves(outputs, y, groups, metric, n_splits, seed), seed, n_draws)
