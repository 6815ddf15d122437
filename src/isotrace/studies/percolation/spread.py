"""Activity that spreads over a graph by thresholds, from every pattern of a few inputs at once.

A node turns on as soon as at least a share φ of its neighbours is on, and stays on; one without neighbours never does.
Inputs are clamped to their pattern. An inverting node is on while fewer are, and may go off again. All change at once,
until nothing does (Watts 2002; Wilkerson and Moschoyiannis 2022 for inverting nodes, which there may not go off).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

STEPS = 200  # of inverting nodes, which may take turns for ever


def random_graph(n: int, degree: float, rng: np.random.Generator) -> csr_array:
    """Symmetric adjacency `[n, n]` float32 of G(n, p), p = degree / (n − 1) (Erdős and Rényi)."""
    pairs = n * (n - 1) // 2
    code = rng.choice(pairs, rng.binomial(pairs, min(1.0, degree / (n - 1))), replace=False, shuffle=False)
    high = ((1 + np.sqrt(1 + 8 * code.astype(np.float64))) / 2).astype(np.int64)
    low = code - high * (high - 1) // 2
    ends = np.concatenate([low, high]), np.concatenate([high, low])
    return csr_array((np.ones(2 * len(code), np.float32), ends), shape=(n, n))


@dataclass(frozen=True, eq=False)
class Spread:
    """`states [steps + 1, n, patterns]` bool, the first that of the inputs alone. `settled`: of every pattern, whether
    nothing changed any more."""

    states: np.ndarray
    settled: np.ndarray

    @property
    def table(self) -> np.ndarray:
        """`[n, patterns]`: the function of every node."""
        return self.states[-1]


def all_patterns(inputs: Sequence[np.ndarray], n: int) -> tuple[np.ndarray, np.ndarray]:
    """(clamped nodes, states `[n, 2^k]` of k inputs): column p has input i on where bit i of p is."""
    k = len(inputs)
    bits = (np.arange(2**k)[None] >> np.arange(k)[:, None]) & 1
    states = np.zeros((n, 2**k), dtype=bool)
    for nodes, row in zip(inputs, bits, strict=True):
        states[nodes] = row
    return np.concatenate([*inputs]), states


def spread(
    graph: csr_array,
    clamped: np.ndarray,
    start: np.ndarray,
    phi: float | np.ndarray,
    inverting: np.ndarray | None = None,
) -> Spread:
    """From `start [n, patterns]`; `phi`: of all nodes or `[n]`; `inverting [n]` bool."""
    n = len(start)
    degree = np.asarray(graph.sum(1))
    # n · φ in floats may lie a rounding above the whole number it should be
    needed = np.maximum(np.ceil(phi * degree - 1e-9), 1.0)[:, None].astype(np.float32)
    free, turned = np.ones(n, dtype=bool), np.zeros(n, dtype=bool) if inverting is None else inverting
    free[clamped] = False
    free &= degree > 0
    states, settled = [start], np.zeros(start.shape[1], dtype=bool)
    while not settled.all() and len(states) <= (STEPS if turned.any() else n):
        now = states[-1]
        reached = graph @ now.astype(np.float32) >= needed
        new = np.where(turned[:, None], ~reached, now | reached)
        new[~free] = start[~free]
        settled = (new == now).all(0)
        states.append(new)
    return Spread(np.stack(states), settled)
