"""How alike fingerprints are."""

import numpy as np


def tanimoto(x: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`[n, m]`: a·b / (|a|² + |b|² − a·b) of the rows of `x [n, d]` and `other [m, d]`, both ≥ 0; 0 for two rows of
    zeros."""
    both = x @ other.T
    total = (x * x).sum(1)[:, None] + (other * other).sum(1)[None] - both
    return np.divide(both, total, out=np.zeros_like(both), where=total > 0)
