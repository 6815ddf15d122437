"""What is measured of activity that spreads, and its closed form on a random graph where one neighbour is enough.

There every node's function is the OR of the inputs that it is connected to. With S the share of the giant component,
S = 1 − exp(−z S), up to terms of order 1 / N:

    mean complexity     k S²
    output entropy      S Σ_m C(k, m) S^m (1 − S)^{k − m} h(2^{−m}), h the entropy of a coin in bits
    functions           1 + k, and one more where two inputs or more are in the giant component
"""

from collections.abc import Sequence
from functools import cache
from math import comb

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, shortest_path
from scipy.special import lambertw
from scipy.stats import poisson


def giant_share(degree: float) -> float:
    """S of mean degree z: the solution above 0 of S = 1 − exp(−z S), 0 up to z = 1."""
    return 0.0 if degree <= 1 else float(1 + lambertw(-degree * np.exp(-degree)).real / degree)


def closed_forms(degree: float, k: int) -> dict[str, float]:
    s = giant_share(degree)
    joined = [comb(k, m) * s**m * (1 - s) ** (k - m) for m in range(k + 1)]
    return {
        "giant": s,
        "complexity": k * s**2,
        "entropy": s * sum(p * float(coin(np.asarray(2.0**-m))) for m, p in enumerate(joined)),
        "functions": 1 + k + sum(joined[2:]),
    }


def cascades_possible(degree: float, phi: float) -> bool:
    """Whether one node can set off a share of a random graph: Σ_{d ≤ 1/φ} d (d − 1) p_d > z, p Poisson (Watts 2002,
    eq. 5)."""
    most = int(np.floor(1 / phi + 1e-9))
    return bool(degree * poisson.cdf(most - 2, degree) > 1)


def coin(p: np.ndarray) -> np.ndarray:
    """Entropy in bits of what is 1 with probability p."""
    p = np.clip(p, 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((p > 0) & (p < 1), -p * np.log2(p) - (1 - p) * np.log2(1 - p), 0.0)


def components(graph: csr_array) -> tuple[float, float]:
    """(share of the largest component, Σ s² / Σ s over the others, NaN where there are none)."""
    sizes = np.sort(np.bincount(connected_components(graph, directed=False)[1]))
    rest, n = sizes[:-1], int(sizes.sum())
    return float(sizes[-1] / n), float((rest**2).sum() / rest.sum()) if len(rest) else float("nan")


def functions(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the distinct functions `[functions, patterns]`, which of them a node has `[n]`)."""
    packed = np.ascontiguousarray(np.packbits(table, axis=1))
    _, first, which = np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_index=True, return_inverse=True)
    return table[first], which.ravel()


def depends(table: np.ndarray) -> np.ndarray:
    """`[n, k]` bool: whether the other state of input i ever changes the node."""
    k, places = int(np.log2(table.shape[1])), np.arange(table.shape[1])
    return np.stack([(table != table[:, places ^ (1 << i)]).any(1) for i in range(k)], 1)


def is_or(table: np.ndarray) -> np.ndarray:
    """`[n]` bool: the function is the OR of the inputs that it depends on, the constant 0 of none."""
    k, places = int(np.log2(table.shape[1])), np.arange(table.shape[1])
    bits = ((places[None] >> np.arange(k)[:, None]) & 1).astype(np.float32)
    return ((depends(table).astype(np.float32) @ bits > 0) == table).all(1)


def tree_depth(function: Sequence[bool]) -> int:
    """Least number of inputs that have to be asked for in the worst case, exactly."""
    return _depth(tuple(bool(v) for v in function))


@cache
def _depth(function: tuple[bool, ...]) -> int:
    if len({*function}) == 1:
        return 0
    k, found = len(function).bit_length() - 1, []
    for i in range(k):
        halves = [tuple(v for p, v in enumerate(function) if (p >> i) & 1 == bit) for bit in (0, 1)]
        found.append(1 + max(map(_depth, halves)))
    return min(found)


def transfer_entropy(states: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """Bits `[n]` that an input tells of a node's next state beside its present one: Σ p(y′, y, x) log₂ p(y′ | y, x) /
    p(y′ | y), over all steps of all patterns. Patterns are enumerated, not drawn, so that nothing is left to correct.
    `states [steps, n, patterns]`, `bits [patterns]` bool: the input's."""
    if len(states) < 2:
        return np.zeros(states.shape[1])
    now, new = states[:-1], states[1:]
    counts = np.stack([
        np.stack([(a & b)[..., chosen].sum((0, 2)) for b in (now, ~now)])
        for a in (new, ~new) for chosen in (bits, ~bits)
    ]).reshape(2, 2, 2, -1)  # y', x, y, node  # fmt: skip
    return _entropy(counts.sum(1)) - _entropy(counts.sum((0, 1))) - _entropy(counts) + _entropy(counts.sum(0))


def _entropy(counts: np.ndarray) -> np.ndarray:
    """Bits, over all axes but the last."""
    flat = counts.reshape(-1, counts.shape[-1]).astype(np.float64)
    share = flat / flat.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.where(share > 0, share * np.log2(share), 0.0).sum(0)


def distances(graph: csr_array, sources: np.ndarray) -> np.ndarray:
    """Steps `[sources, n]` of the shortest path, infinite where there is none."""
    return shortest_path(graph, unweighted=True, directed=False, indices=sources)


def front(points: np.ndarray) -> np.ndarray:
    """Rows of `points [n, 2]` that no other exceeds in one number and equals or exceeds in the other."""
    order, best, kept = np.lexsort((-points[:, 1], -points[:, 0])), -np.inf, []
    for row in order:
        if points[row, 1] > best:
            kept.append(row)
            best = points[row, 1]
    return points[kept]


def hypervolume(points: np.ndarray) -> float:
    """Area between the origin and the front of `points [n, 2]`, all of them 0 or more."""
    area, below = 0.0, 0.0
    for x, y in front(points):
        area += x * (y - below)
        below = y
    return area
