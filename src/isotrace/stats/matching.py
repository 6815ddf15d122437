"""Random sets that resemble a given one: as many of every stratum, each member near in frequency to one of the set."""

from collections.abc import Sequence

import numpy as np

NEIGHBOURS = 10


def log_frequency(share: np.ndarray) -> np.ndarray:
    """Log of how often something happens, float64; finite where it never does. `share`: any shape, in [0, 1]."""
    return np.log(np.asarray(share, np.float64) + 1e-9)


def matched(
    strata: Sequence[int], frequencies: np.ndarray, pools: Sequence[np.ndarray], rng: np.random.Generator,
    neighbours: int = NEIGHBOURS,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """For every member of a set, in random order, a candidate of its stratum: one of the `neighbours` that are closest
    in log frequency and still free.

    strata, frequencies: stratum and log frequency of every member, `[n]`. pools: log frequencies of the candidates of
    every stratum; +∞ may not be drawn, and every pool needs as many that may as the set has members
    there. Returns (members in the order drawn, the candidate of each as its place in the pool), int64 `[n]`.
    """
    order, drawn, free = rng.permutation(len(strata)), [], []  # the places that are free, by frequency, ties at random
    for pool in pools:
        places = rng.permutation(len(pool))
        free.append(places[np.argsort(pool[places], kind="stable")][: int(np.isfinite(pool).sum())])
    values = [np.asarray(pool, np.float64)[places] for pool, places in zip(pools, free, strict=True)]
    for member in order:
        stratum, own = strata[member], frequencies[member]
        first = max(0, int(values[stratum].searchsorted(own)) - neighbours)
        near = np.abs(values[stratum][first : first + 2 * neighbours] - own).argsort(kind="stable")[:neighbours]
        at = first + int(near[rng.integers(len(near))])
        drawn.append(int(free[stratum][at]))
        free[stratum], values[stratum] = np.delete(free[stratum], at), np.delete(values[stratum], at)
    return order, np.asarray(drawn, dtype=np.int64)
