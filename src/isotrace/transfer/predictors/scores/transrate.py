"""TransRate: the coding rate of embeddings less the mean of those within classes."""

import numpy as np

from isotrace.base.errors import InputError
from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor

EPSILON = 1e-4


@predictor("transrate", source="Huang et al. 2022, arXiv 2106.09545, classes weighted by n_c/N")
def transrate(evidence: Evidence) -> float:
    """R(F) − Σ n_c/N R(F_c), numbers in five quantile bins, of as many principal components as all compared have.

    It grows with D. Raises InputError where `Evidence.width` is not given, see `alike`.
    """
    if evidence.width is None:
        raise InputError("it compares embeddings of equal width only: give the smallest of all compared (alike)")
    z = _unit_rows(evidence.embeddings, evidence.width)
    parts = [z[evidence.bins == k] for k in np.unique(evidence.bins)]
    return rate(z) - sum(len(part) / len(z) * rate(part) for part in parts)


def rate(z: np.ndarray) -> float:
    """½ ln det(I + ZᵀZ/(n ε)) of `z [n, d]`, nats."""
    gram = z.T @ z if len(z) > z.shape[1] else z @ z.T
    return 0.5 * float(np.linalg.slogdet(np.eye(len(gram)) + gram / (len(z) * EPSILON))[1])


def _unit_rows(f: np.ndarray, width: int) -> np.ndarray:
    """`[N, width]` principal components, rows of length 1."""
    centred = f - f.mean(0)
    if width < f.shape[1]:
        centred = centred @ np.linalg.svd(centred, full_matrices=False)[2][:width].T
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, length, out=np.zeros_like(centred), where=length > 0)
