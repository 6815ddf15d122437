"""Bootstrap (Efron 1979): units, or whole groups of them, drawn with replacement as often as there are.

A draw is a row of weights, how often each unit is in it: a statistic of many draws is then a product of matrices, and
statistics on the same weights are paired. Intervals are 95 % percentile intervals.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from isotrace.stats.metrics import pearson

LEVELS = (0.025, 0.975)
DEFINED = 0.95
"""Of the draws: where a statistic is not defined in more of them than the rest, those left do not speak for it."""

Seed = int | tuple[int, ...] | np.random.Generator


def bootstrap_weights(n: int, n_draws: int, seed: Seed) -> np.ndarray:
    """float64 `[n_draws, n]`: how often each of `n` units is drawn."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_draws).astype(np.float64)


def group_weights(groups: Sequence[str], n_draws: int, seed: Seed) -> np.ndarray:
    """float64 `[1 + n_draws, n]`: the units as they are, then draws of whole groups; `groups[i]` is that of unit i."""
    names, inverse = np.unique(np.asarray(groups), return_inverse=True)
    drawn = bootstrap_weights(len(names), n_draws, seed)
    return np.concatenate([np.ones((1, len(groups))), drawn[:, inverse]])


def intervals(draws: np.ndarray, defined: float = DEFINED) -> np.ndarray:
    """`[2, …]` low and high of `draws [n_draws, …]`. Draws that are not finite are left out; NaN where no more than the
    share `defined` of the draws is finite, and for no draws."""
    draws = np.asarray(draws)
    if not len(draws):
        return np.full((2, *draws.shape[1:]), np.nan)
    finite = np.isfinite(draws)
    if finite.all():
        return np.quantile(draws, LEVELS, axis=0)
    draws = np.where(finite, draws, np.nan)
    bounds = np.quantile(draws, LEVELS, axis=0)  # NaN where any draw is
    some = ~finite.all(0) & (finite.mean(0) > defined)
    bounds[:, some] = np.nanquantile(draws[:, some], LEVELS, axis=0)
    return bounds


def interval(draws: np.ndarray, defined: float = DEFINED) -> tuple[float, float]:
    """(low, high) of `draws [n_draws]`, see `intervals`."""
    low, high = intervals(draws, defined).tolist()
    return low, high


def valued(draws: np.ndarray) -> dict[str, Any]:
    """`value` of `draws [1 + n_draws]`, the first as observed, and the `ci` of the others."""
    return {"value": float(draws[0]), "ci": list(interval(draws[1:]))}


def mean_interval(values: np.ndarray, seed: Seed, n_draws: int = 2_000) -> tuple[float, float]:
    """(low, high) of the mean of `values [n]`; NaN for fewer than two values and where one is not finite."""
    if len(values) < 2 or not np.isfinite(values).all():
        return np.nan, np.nan
    return interval(bootstrap_weights(len(values), n_draws, seed) @ values / len(values))


def pearson_interval(x: np.ndarray, y: np.ndarray, seed: Seed, n_draws: int = 1_000) -> tuple[float, float, float]:
    """(r, low, high) of Pearson's correlation of `x` and `y` `[n]`; NaN for fewer than three pairs and where one is not
    finite, and r is NaN if either side is constant."""
    if len(x) < 3 or not np.isfinite([x, y]).all():
        return np.nan, np.nan, np.nan
    r = pearson(x, y, np.concatenate([np.ones((1, len(x))), bootstrap_weights(len(x), n_draws, seed)]))
    return float(r[0]), *interval(r[1:])
