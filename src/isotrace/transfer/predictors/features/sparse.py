"""Cross-validated score of a sparse readout of features."""

from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lasso_path

from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.features.bases import features_in, of_each_basis

SCREENED, STRENGTHS = 1_000, np.geomspace(1, 0.02, 20)
"""Columns that correlate most with a target, which the path begins with; penalties as shares of the largest."""


@of_each_basis("sparse", source="Tibshirani 1996")
def sparse(evidence: Evidence, basis: str) -> float:
    """Lasso with N/10 features at most, folds and score of `probe`, the penalty chosen on one more fold.

    Least squares, of classes on 0 and 1.
    """
    x, outputs = features_in(evidence, basis), np.full(evidence.targets.shape, np.nan)
    most = max(1, len(x) // 10)
    for fit, valid, test in evidence.folds:
        tried, allowed = _path(x, evidence.targets, fit, valid, most)
        worth = [evidence.worth(one) if ok else np.nan for one, ok in zip(tried, allowed, strict=True)]
        best = int(np.argmax(np.nan_to_num(worth, nan=-np.inf)))
        tried, allowed = _path(x, evidence.targets, np.concatenate([fit, valid]), test, most)
        # with more rows the penalty chosen may keep more features; the first keeps next to none
        outputs[test] = tried[np.flatnonzero(allowed[: best + 1])[-1]][test]
    return evidence.worth(outputs)


def _path(
    x: np.ndarray, targets: np.ndarray, rows: np.ndarray, asked: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """(`[penalties, N, targets]` fitted on `rows` and NaN but at `asked`, bool `[penalties]`: those that keep `most`
    features at most, the largest always among them)."""
    into = np.full((len(STRENGTHS), *targets.shape), np.nan)
    kept = np.zeros((len(STRENGTHS), x.shape[1]), dtype=bool)
    for t, y in enumerate(targets.T):
        columns, z, mean = screened(x, y, rows, SCREENED)
        fitted, centred, weights = np.asfortranarray(z[rows]), y[rows] - mean, np.zeros(z.shape[1])
        top = np.abs(fitted.T @ centred).max(initial=0) / len(rows)
        penalties: Any = STRENGTHS * max(top, np.finfo(float).tiny)
        for step in range(len(STRENGTHS)):
            with catch_warnings():
                simplefilter("ignore", ConvergenceWarning)
                weights = lasso_path(fitted, centred, alphas=penalties[step : step + 1], coef_init=weights)[1][:, 0]
            into[step, asked, t] = z[asked] @ weights + mean
            kept[step, columns] |= weights != 0
            if (weights != 0).sum() > 2 * most:  # smaller penalties keep more, and take longest
                kept[step + 1 :] = True
                break
    return into, (kept.sum(1) <= most) | (np.arange(len(STRENGTHS)) == 0)


def screened(x: np.ndarray, y: np.ndarray, rows: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, float]:
    """(the `n` columns of `x [N, F]` that correlate most with `y` on `rows`, all rows of them standardised by those,
    the mean of `y`). Columns that are constant there are left out."""
    mean, sd = x[rows].mean(0), x[rows].std(0)
    vary = np.flatnonzero(sd > 1e-12 * (1 + np.abs(mean)))
    z = (x[:, vary] - mean[vary]) / sd[vary]
    y_mean = float(y[rows].mean())
    best = np.sort(np.argsort(-np.abs(z[rows].T @ (y[rows] - y_mean)), kind="stable")[:n])
    return vary[best], np.asfortranarray(z[:, best]), y_mean
