"""Random sets that resemble a given one: as many of every stratum, each member near in frequency to one of the set."""

from bisect import bisect_left
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
    order, drawn, free, values = rng.permutation(len(strata)), [], [], []
    for pool in pools:  # the places that are free, by frequency, ties at random
        places = rng.permutation(len(pool))
        places = places[np.argsort(pool[places], kind="stable")][: int(np.isfinite(pool).sum())]
        free.append(places.tolist())
        values.append(np.asarray(pool, np.float64)[places].tolist())
    for member in order.tolist():
        stratum, own = strata[member], float(frequencies[member])
        first = max(0, bisect_left(values[stratum], own) - neighbours)
        distances = [abs(value - own) for value in values[stratum][first : first + 2 * neighbours]]
        near = sorted(range(len(distances)), key=distances.__getitem__)[:neighbours]
        at = first + near[int(rng.integers(len(near)))]
        drawn.append(free[stratum].pop(at))
        del values[stratum][at]
    return order, np.asarray(drawn, dtype=np.int64)
