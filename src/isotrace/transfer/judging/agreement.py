"""How a predictor agrees with outcomes on one task: rank correlations, and what its choice costs."""

from math import comb

import numpy as np

from isotrace.stats.metrics import spearman

LEAST = 3
"""Checkpoints below which no correlation is told."""
MEASURES = ("spearman", "kendall", "regret_1", "regret_3")


def kendall(a: np.ndarray, b: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Kendall's τ-b `[draws]` of `a` and `b` `[n]`, `weights [draws, n]` counting how often each is drawn; NaN where
    either is constant (Kendall 1945)."""
    first, second = (np.sign(x[:, None] - x[None]) for x in (a, b))
    both, one, other = (((weights @ s) * weights).sum(1) for s in (first * second, first**2, second**2))
    scale = np.sqrt(one * other)
    return np.divide(both, scale, out=np.full(len(weights), np.nan), where=scale > 0)


def regret(scores: np.ndarray, y: np.ndarray, k: int) -> float:
    """max y − the best y among the `k` checkpoints of the largest scores, in units of the metric; equal scores are
    taken in random order, and this is the mean over orders. `[n]` each.

    A checkpoint without a score is never chosen, one without an outcome is left out. NaN where none has both.
    """
    known = np.isfinite(y)
    scores, y = scores[known], y[known]
    scored = np.isfinite(scores)
    if not scored.any():
        return np.nan
    best, scores, y = y.max(), scores[scored], y[scored]
    k = min(k, len(y))
    edge = np.sort(scores)[-k]
    sure, tied = y[scores > edge], np.sort(y[scores == edge])[::-1]
    n, drawn = len(tied), k - len(sure)
    # the i-th best of those tied is the best of those drawn in C(n − 1 − i, drawn − 1) of C(n, drawn) cases
    chance = np.array([comb(n - 1 - i, drawn - 1) for i in range(n)]) / comb(n, drawn)
    return float(best - chance @ np.maximum(tied, sure.max(initial=-np.inf)))


def agreement(scores: np.ndarray, y: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Each of MEASURES `[draws]` of one task; scores, y `[n]`, NaN where unknown; `weights [draws, n]`: how often each
    checkpoint is drawn. NaN in draws with fewer than LEAST checkpoints, and correlations where a side is constant."""
    both = np.isfinite(scores) & np.isfinite(y)
    drawn = weights > 0
    enough = (drawn & both).sum(1) >= LEAST
    subsets, which = np.unique(drawn & np.isfinite(y), axis=0, return_inverse=True)
    found = {name: np.full(len(weights), np.nan) for name in MEASURES}
    if both.sum() >= LEAST:
        for name, of in (("spearman", lambda s, o, w: spearman(s[:, None], o, w)), ("kendall", kendall)):
            found[name] = np.where(enough, of(scores[both], y[both], weights[:, both]), np.nan)
        found["spearman"][~np.isfinite(found["kendall"])] = np.nan
    for k in (1, 3):
        costs = np.array([regret(scores[some], y[some], k) for some in subsets])
        found[f"regret_{k}"] = np.where(enough, costs[which.ravel()], np.nan)
    return found
