"""Checkpoints of which it is known how much of a task they know: a planted share of the labels' variance."""

from functools import cache

import numpy as np

from isotrace.probing.linear import Task
from isotrace.transfer.predictors import Evidence, alike

WIDTHS = (64, 128, 192, 256, 384, 512, 640, 768)
SHARES = np.linspace(0, 1, 8)
INFORMED = 8
"""Dimensions of A."""


@cache
def checkpoints(n: int, seed: int, kind: Task = "regression", widths=WIDTHS) -> list[Evidence]:
    """F = [A | noise], turned at random: y = A w + ε has the share SHARES[i] of its variance in A at checkpoint i, y
    being the same for all. Noise has as much variance in all as A, spread over the other dimensions; without the turn a
    probe, which standardises every column, would make it larger. Widths are in random order. Layers: noise, F,
    noise."""
    rng = np.random.default_rng((seed, n))
    y = rng.standard_normal(n)
    label = y if kind == "regression" else (y > np.median(y)).astype(float)
    groups, found = np.asarray([str(i // 2) for i in range(n)]), []
    for share, width in zip(SHARES, rng.permutation(widths), strict=True):
        a = rng.standard_normal((n, INFORMED))
        a[:, 0] = np.sqrt(share) * y + np.sqrt(1 - share) * a[:, 0]
        noise = rng.standard_normal((n, width - INFORMED)) * np.sqrt(INFORMED / (width - INFORMED))
        f = np.concatenate([a, noise], 1) @ np.linalg.qr(rng.standard_normal((width, width)))[0]
        other = rng.standard_normal((2, n, 16))
        found.append(Evidence(f, (other[0], f, other[1]), label, kind, groups, seed=seed))
    return alike(found)
