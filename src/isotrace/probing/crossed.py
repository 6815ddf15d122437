"""Predictions of rows by readouts that have not seen their group, calibrated; the same of a forest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_softmax
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from isotrace.probing.folds import Folds
from isotrace.probing.linear import Task, Weights, fitted, searched
from isotrace.stats.metrics import METRICS

STRENGTHS = {"classification": (1e-4, 1e-3, 1e-2, 1e-1, 1.0), "regression": (1.0, 10.0, 100.0, 1e3, 1e4)}
TREES = 100
SHARES = (1 / 8, 1 / 4, 1 / 2)
"""Of the groups that a readout is fitted on: the points of the learning curve beside all of them."""


@dataclass(frozen=True, eq=False)
class Crossed:
    """`raw`, `outputs [n, outputs]` of rows held out, NaN elsewhere, before calibration and behind it; `readouts` and
    `strengths` of the folds, the former calibrated."""

    raw: np.ndarray
    outputs: np.ndarray
    readouts: tuple[Weights, ...]
    strengths: tuple[float, ...]


def crossed(x: np.ndarray, y: np.ndarray, task: Task, folds: Folds, classes: Sequence[str]) -> Crossed:
    """Of every fold: a readout fitted on its rows `fit` and `valid`, the penalty chosen, and classes calibrated, by one
    that had seen `fit` alone."""
    n_outputs = len(classes) if len(classes) > 2 else 1
    raw, outputs = np.full((2, len(y), n_outputs), np.nan)
    readouts, strengths = [], []
    for fit, valid, test in folds:
        rows = np.concatenate([fit, valid])
        inner = [(np.arange(len(fit)), np.arange(len(fit), len(rows)))]
        weights, strength = searched(x[rows], y[rows], task, STRENGTHS[task], inner)
        alone = fitted(x[fit], y[fit], task, strength) if task == "classification" else weights
        own = calibrated(weights, x[valid] @ alone[0] + alone[1], y[valid], task)
        raw[test], outputs[test] = (x[test] @ weight + bias for weight, bias in (weights, own))
        readouts.append(own)
        strengths.append(strength)
    return Crossed(raw, outputs, tuple(readouts), tuple(strengths))


def _calibration(outputs: np.ndarray, y: np.ndarray, task: Task) -> tuple[float, float]:
    """(slope, offset) that make outputs true: Platt's of two classes, a temperature of more; numbers stay."""
    if task == "regression" or len(np.unique(y)) < 2:
        return 1.0, 0.0
    if outputs.shape[1] == 1:
        # Platt's targets keep the slope finite where the classes can be told apart without error
        positive = y == 1
        target = np.where(positive, (positive.sum() + 1) / (positive.sum() + 2), 1 / ((~positive).sum() + 2))

        def loss(p: np.ndarray) -> float:
            z = outputs[:, 0] * p[0] + p[1]
            return float(np.mean(np.logaddexp(0, z) - target * z))

        slope, offset = minimize(loss, [1.0, 0.0], method="Nelder-Mead").x
        return float(max(slope, 1e-3)), float(offset)

    def nll(p: np.ndarray) -> float:
        return -float(np.mean(log_softmax(outputs * np.exp(p[0]), 1)[np.arange(len(y)), y.astype(int)]))

    return float(np.exp(minimize(nll, [0.0], method="Nelder-Mead").x[0])), 0.0


def calibrated(weights: Weights, outputs: np.ndarray, y: np.ndarray, task: Task) -> Weights:
    """With the calibration of `outputs`, the raw ones of rows held out, folded in."""
    slope, offset = _calibration(outputs, y, task)
    return weights[0] * slope, weights[1] * slope + offset


def forest(
    x: np.ndarray, y: np.ndarray, task: Task, folds: Folds, seed: int, n_trees: int = TREES
) -> np.ndarray:  # fmt: skip
    """Outputs as `crossed` gives, log-odds or log-probabilities of classes. No settings are chosen: fit and valid
    together. Columns that hardly any sequence has are left out, which changes nothing but the time."""
    x, found = x[:, (x > 0).sum(0) >= 3], None
    for fit, valid, test in folds:
        rows = np.concatenate([fit, valid])
        kind: Any = RandomForestRegressor if task == "regression" else RandomForestClassifier
        trees = kind(n_trees, max_features="sqrt", random_state=seed, n_jobs=-1).fit(x[rows], y[rows])
        trees.n_jobs = 1  # several threads add their trees' predictions in any order, which shows in the last digit
        if isinstance(trees, RandomForestClassifier):
            shares = np.log(np.clip(trees.predict_proba(x[test]), 0.5 / n_trees, 1))
            outputs = shares if shares.shape[1] > 2 else shares[:, 1:] - shares[:, :1]
        else:
            outputs = np.asarray(trees.predict(x[test]))[:, None]
        found = np.full((len(y), outputs.shape[1]), np.nan) if found is None else found
        found[test] = outputs
    assert found is not None
    return found


def metrics_of(task: Task, classes: Sequence[str]) -> tuple[str, ...]:
    """Names of METRICS, that which is compared first."""
    if task == "regression":
        return ("rmse", "r2", "spearman")
    return ("auroc" if len(classes) < 3 else "macro_auroc", "balanced_accuracy")


def learning_curve(
    x: np.ndarray, y: np.ndarray, groups: np.ndarray, task: Task, folds: Folds, strength: float, metric: str, seed: int
) -> tuple[tuple[float, float], ...]:
    """(rows fitted on, `metric` of the rows held out) with rising shares of the groups; left out where a class is
    lost."""
    points, rng = [], np.random.default_rng((seed, 5))
    for share in (*SHARES, 1.0):
        sizes, held, outputs = [], [], []
        for fit, valid, test in folds:
            rows = np.concatenate([fit, valid])
            names = np.unique(groups[rows])
            some = rows[np.isin(groups[rows], rng.permutation(names)[: max(1, round(share * len(names)))])]
            if task == "classification" and len(np.unique(y[some])) < len(np.unique(y)):
                break
            weight, bias = fitted(x[some], y[some], task, strength)
            sizes, held, outputs = [*sizes, len(some)], [*held, test], [*outputs, x[test] @ weight + bias]
        if len(held) < len(folds) or min(sizes) < 3:
            continue
        rows = np.concatenate(held)
        score = METRICS[metric](np.concatenate(outputs), y[rows], np.ones((1, len(rows))))
        points.append((float(np.mean(sizes)), float(score[0])))
    return tuple(points)


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """`[n, classes]` from calibrated outputs `[n, outputs]`."""
    if outputs.shape[1] > 1:
        return np.exp(log_softmax(outputs, 1))
    p = expit(outputs[:, 0])
    return np.stack([1 - p, p], 1)
