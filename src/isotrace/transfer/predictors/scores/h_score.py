"""H-score: how much of the embeddings' variance lies between classes, in units of their own covariance."""

import numpy as np
from sklearn.covariance import ledoit_wolf

from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor


@predictor("h_score", source="Bao et al. 2019, ICIP, doi 10.1109/ICIP.2019.8803726")
def h_score(evidence: Evidence) -> float:
    """tr(cov(F)⁺ cov(E[F|y])), numbers in five quantile bins; with N ≤ D it is C − 1 whatever F is."""
    f = evidence.embeddings - evidence.embeddings.mean(0)
    # of the trace only a projection on the columns' space is left, F cov(F)⁺ Fᵀ = N · U Uᵀ
    u, s, _ = np.linalg.svd(f, full_matrices=False)
    u = u[:, s > s.max() * max(f.shape) * np.finfo(float).eps]
    means, counts = _class_means(u, evidence.bins)
    return float((counts[:, None] * means**2).sum())


@predictor("h_score_shrunk", source="Ibrahim et al. 2022, arXiv 2110.06893: Ledoit–Wolf, class part × (1 − shrinkage)")
def h_score_shrunk(evidence: Evidence) -> float:
    """The same with a shrunk covariance, for fewer sequences than dimensions."""
    f = evidence.embeddings - evidence.embeddings.mean(0)
    covariance, shrinkage = ledoit_wolf(f, assume_centered=True)
    means, counts = _class_means(f, evidence.bins)
    between = (means * (counts / len(f))[:, None]).T @ means
    return float((1 - shrinkage) * np.trace(np.linalg.solve(covariance, between)))


def _class_means(x: np.ndarray, bins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(`[classes, d]`, how many there are of each)."""
    counts = np.bincount(bins)
    return np.stack([x[bins == k].mean(0) for k in range(len(counts))]), counts
