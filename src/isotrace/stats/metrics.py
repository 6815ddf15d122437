"""What predictions are worth, each on many weightings of the examples at once, so that a bootstrap is one call.

Weights `[draws, n]` count how often an example is drawn; results are `[draws]`, NaN where a draw leaves nothing to
measure (one class only, constant values).
"""

from collections.abc import Callable

import numpy as np

from isotrace.stats.share import share

Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(predictions `[n, outputs]`, labels `[n]`, weights `[draws, n]`) → `[draws]`."""


def auroc(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve of labels 0 and 1; ties count one half."""
    return (1 + Truth(y, weights, True).effects(np.arange(len(y)), predicted[:, 0])[0]) / 2


def macro_auroc(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of the AUROC of their output for them against all others. Rare classes are missing from
    some draws, whose mean is then over the others."""
    one_by_one = [auroc(column[:, None], (y == k).astype(float), weights) for k, column in enumerate(predicted.T)]
    return np.nanmean(np.stack(one_by_one), 0)


def auprc(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Average precision of labels 0 and 1: mean over the positives of the share of positives among all that is
    predicted no lower. A random order gives about the share of positives; NaN where a draw has none."""
    order = np.argsort(-predicted[:, 0], kind="stable")
    last = np.r_[predicted[order[1:], 0] != predicted[order[:-1], 0], True]  # of equal predictions
    weights, hit = weights[:, order], y[order] == 1
    positives, all_ = (np.cumsum(part, 1)[:, last] for part in (weights * hit, weights))
    new = np.diff(positives, axis=1, prepend=0)
    precision = positives / np.maximum(all_, 1e-300)  # where nobody was drawn yet there is no positive either
    return share((new * precision).sum(1), positives[:, -1], 0.0)


def balanced_accuracy(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of the share of their examples that get the largest output; a single output is the
    log-odds of the second of two. Rare classes are missing from some draws, whose mean is then over the others."""
    single = predicted.shape[1] == 1
    hit = (predicted[:, 0] > 0 if single else predicted.argmax(1)) == y
    classes = np.arange(2 if single else predicted.shape[1])[:, None] == y
    drawn = weights @ classes.T
    with np.errstate(invalid="ignore"):
        return np.nanmean((weights @ (classes * hit).T) / drawn, 1)


def accuracy(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`predicted[:, 0]` is 1 for a hit."""
    with np.errstate(invalid="ignore"):
        return (weights @ predicted[:, 0]) / weights.sum(1)


def spearman(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Rank correlation, tied values at their mean rank."""
    effect, flat = Truth(y, weights, False).effects(np.arange(len(y)), predicted[:, 0])
    return np.where(flat, np.nan, effect)


def pearson(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlation `[draws]` of `x` and `y` `[n]`."""
    total = weights.sum(1, keepdims=True)
    a, b = (v - (weights @ v)[:, None] / total for v in (x, y))
    spread = [(weights * v * v).sum(1) for v in (a, b)]
    # a constant less its mean is a rounding error
    noise = [total[:, 0] * (1e-14 * np.abs(v).max(initial=0)) ** 2 for v in (x, y)]
    flat = (spread[0] <= noise[0]) | (spread[1] <= noise[1])
    return share((weights * a * b).sum(1), np.where(flat, 0.0, np.sqrt(spread[0] * spread[1])), 0.0)


def r2(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """1 − squared error / variance of the draw."""
    mean = (weights @ y) / weights.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (weights @ (predicted[:, 0] - y) ** 2) / (weights * (y[None] - mean[:, None]) ** 2).sum(1)


class Truth:
    """Classes (0, 1) or values `y [n]`, to be compared by rank with many predictions on the same draws.

    Both effects are a covariance of centred `y` with ranks over a scale, so that of a prediction that is 0 nearly
    everywhere only the rest is looked at."""

    def __init__(self, y: np.ndarray, weights: np.ndarray, is_class: bool) -> None:
        weights = np.ascontiguousarray(weights.T, dtype=np.float64)  # rows of it are gathered for every prediction
        self.weights, self.size, self.is_class = weights, weights.sum(0), is_class
        if is_class:
            y = y[:, None]
        else:
            order = np.argsort(y, kind="stable")
            y = _mid_ranks(_sum(weights[order], y[order]))[np.unique(y, return_inverse=True)[1]]
        with np.errstate(invalid="ignore"):
            self.centred = weights * (y - (weights * y).sum(0) / self.size)
        self.spread = (self.centred * y).sum(0)
        self.n_pairs = (weights * y).sum(0) * (weights * (1 - y)).sum(0)

    def effects(self, rows: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Somers' D = 2 · AUROC − 1 of classes, Spearman's rho of values `[draws]` for a prediction that is `values` on
        `rows` and 0 elsewhere, and bool `[draws]`: the prediction is the same everywhere, the effect then 0. NaN where
        a draw has one class, or one value, only."""
        order = np.argsort(values, kind="stable")
        rows, values = rows[order], values[order]
        groups, covered = _sum(self.weights[rows], values), _sum(self.centred[rows], values)
        if len(rows) < len(self.weights):
            # The centred numbers sum to zero, so those of the rows left over are minus the others.
            at = np.searchsorted(np.unique(values), 0)
            groups = np.insert(groups, at, self.size - groups.sum(0), axis=0)
            covered = np.insert(covered, at, -covered.sum(0), axis=0)
        ranks = _mid_ranks(groups) - (self.size + 1) / 2
        covariance, spread = np.einsum("gd,gd->d", ranks, covered), np.einsum("gd,gd,gd->d", groups, ranks, ranks)
        scale = self.n_pairs / 2 if self.is_class else np.sqrt(spread * self.spread)
        flat = spread < 0.1  # a second value gives at least 1/2
        defined = self.n_pairs > 0 if self.is_class else self.spread > 0.1
        effect = np.divide(covariance, scale, out=np.zeros_like(scale), where=defined & ~flat)
        return np.where(defined, effect, np.nan), flat


def _sum(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`[distinct values, draws]`: sums of the rows of `weights` over equal `values`, which are ascending."""
    if not len(values):
        return np.zeros((0, weights.shape[1]))
    return np.add.reduceat(weights, np.flatnonzero(np.r_[True, values[1:] != values[:-1]]), axis=0)


def _mid_ranks(groups: np.ndarray) -> np.ndarray:
    """Rank in every draw of groups `[groups, draws]` of tied members, ascending."""
    return np.cumsum(groups, axis=0) - groups / 2 + 0.5


def rmse(predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Root of the mean squared error, in the unit of the labels."""
    with np.errstate(invalid="ignore"):
        return np.sqrt((weights @ (predicted[:, 0] - y) ** 2) / weights.sum(1))


METRICS: dict[str, Score] = {
    "auroc": auroc,
    "auprc": auprc,
    "macro_auroc": macro_auroc,
    "balanced_accuracy": balanced_accuracy,
    "accuracy": accuracy,
    "spearman": spearman,
    "r2": r2,
    "rmse": rmse,
}


def adjusted_rand(a: np.ndarray, b: np.ndarray) -> float:
    """Agreement of two groupings of the same things, labels `[n]` each: 1 is the same, 0 is what chance gives."""
    (_, a), (_, b) = (np.unique(labels, return_inverse=True) for labels in (a, b))
    both = np.zeros((a.max(initial=0) + 1, b.max(initial=0) + 1))
    np.add.at(both, (a, b), 1)
    together, rows, columns, every = (float((n * (n - 1)).sum()) for n in (both, both.sum(1), both.sum(0), both.sum()))
    expected = rows * columns / every if every else 0.0
    most = (rows + columns) / 2
    return 1.0 if most == expected else (together - expected) / (most - expected)
