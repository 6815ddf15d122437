"""Where a probe may be trusted: its error by how like the nearest known relative a sequence is."""

from itertools import pairwise
from typing import Any

import numpy as np

from isotrace.probing.probe import Probed
from isotrace.stats.metrics import METRICS
from isotrace.stats.similarity import tanimoto

BOUNDS = (0.0, 0.3, 0.4, 0.5, 0.6, 1.0)
LEAST = 10
"""Rows of a bin below which nothing is said of it."""
BLOCK = 512


def validity(found: Probed) -> list[dict[str, Any]]:
    """Of bins of the Tanimoto similarity of fingerprints to the nearest sequence of another group: how many rows were
    held out, and the probe's first metric on them (None for fewer than LEAST, or one class)."""
    assert found.fingerprints is not None
    groups = np.unique([e.group for e in found.data.examples], return_inverse=True)[1]
    near, bins = nearest(found.fingerprints, groups)[found.places], []
    outputs, metric = found.outputs["subject"], METRICS[found.metrics[0]]
    for low, high in pairwise(BOUNDS):
        rows = np.flatnonzero(found.held & (near >= low) & ((near < high) | (high == BOUNDS[-1])))
        value = float(metric(outputs[rows], found.y[rows], np.ones((1, len(rows))))[0]) if len(rows) >= LEAST else None
        bins.append({"from": low, "to": high, "n": len(rows), "value": value})
    return bins


def nearest(x: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """`[n]`: the largest Tanimoto similarity of each row of `x [n, d]` ≥ 0 to one of another group; 0 where there is
    none."""
    found = np.zeros(len(x))
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        like = tanimoto(x[rows], x)
        like[groups[rows, None] == groups[None]] = 0
        found[rows] = like.max(1, initial=0)
    return found
