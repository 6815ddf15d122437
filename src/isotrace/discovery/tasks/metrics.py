"""Metrics of a task, each on many weightings of the examples at once, so that a bootstrap is one call.

Weights `[draws, n]` count how often an example is drawn; results are `[draws]`, NaN where a draw leaves nothing to
measure (one class only, constant values).
"""

from collections.abc import Callable

import numpy as np

Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(predictions `[n, outputs]`, labels `[n]`, weights `[draws, n]`) → `[draws]`."""


def auroc(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of labels 0 and 1; ties count one half."""
    order = np.argsort(predicted[:, 0], kind="stable")
    starts = np.flatnonzero(np.diff(predicted[order, 0], prepend=-np.inf))
    positive = np.add.reduceat(weights[:, order] * y[order], starts, 1)
    negative = np.add.reduceat(weights[:, order] * (1 - y[order]), starts, 1)
    below = negative.cumsum(1) - negative / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (positive * below).sum(1) / (positive.sum(1) * negative.sum(1))


def macro_auroc(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of the AUROC of their output for them against all others. Rare classes are missing from
    some draws, whose mean is then over the others."""
    one_by_one = [auroc(column[:, None], (y == k).astype(float), weights) for k, column in enumerate(predicted.T)]
    return np.nanmean(np.stack(one_by_one), 0)


def balanced_accuracy(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of the share of their examples that get the largest output. Rare classes are missing
    from some draws, whose mean is then over the others."""
    hit = predicted.argmax(1) == y
    classes = np.arange(predicted.shape[1])[:, None] == y
    drawn = weights @ classes.T
    with np.errstate(invalid="ignore"):
        return np.nanmean((weights @ (classes * hit).T) / drawn, 1)


def accuracy(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`predicted[:, 0]` is 1 for a hit."""
    with np.errstate(invalid="ignore"):
        return (weights @ predicted[:, 0]) / weights.sum(1)


def spearman(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank correlation, tied values at their mean rank."""
    a, b = (_ranks(v, weights) for v in (predicted[:, 0], y))
    total = weights.sum(1, keepdims=True)
    a, b = (v - (weights * v).sum(1, keepdims=True) / total for v in (a, b))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weights * a * b).sum(1) / np.sqrt((weights * a * a).sum(1) * (weights * b * b).sum(1))


def r2(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1 − squared error / variance of the draw."""
    mean = (weights @ y) / weights.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (weights @ (predicted[:, 0] - y) ** 2) / (weights * (y[None] - mean[:, None]) ** 2).sum(1)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mid-ranks of `values [n]` in each weighted sample, `[draws, n]`."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=-np.inf))
    mass = np.add.reduceat(weights[:, order], starts, 1)
    middle = mass.cumsum(1) - mass / 2
    group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(values)))
    ranks = np.empty_like(weights, dtype=np.float64)
    ranks[:, order] = middle[:, group]
    return ranks


METRICS: dict[str, Score] = {
    "auroc": auroc,
    "macro_auroc": macro_auroc,
    "balanced_accuracy": balanced_accuracy,
    "accuracy": accuracy,
    "spearman": spearman,
    "r2": r2,
}


def group_weights(groups: list[str], n_draws: int, seed: int) -> np.ndarray:
    """`[1 + n_draws, n]`: the examples as they are, then draws of whole groups with replacement."""
    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    rng = np.random.default_rng((seed, 3))
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), n_draws)
    return np.concatenate([np.ones((1, len(groups))), drawn[:, inverse]]).astype(np.float64)
