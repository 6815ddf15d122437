"""Alignment of the embeddings' kernel with that of the labels."""

import numpy as np

from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor


@predictor("kernel_alignment", source="Cristianini et al. 2001; Cortes et al. 2012, arXiv 1203.0550, on centring")
def kernel_alignment(evidence: Evidence) -> float:
    """⟨K, YYᵀ⟩ / (‖K‖ ‖YYᵀ‖), K = FFᵀ, both centred, Y the labels, of classes a column for each."""
    return alignment(evidence.embeddings, evidence.targets)


def alignment(f: np.ndarray, y: np.ndarray) -> float:
    """Of `f [N, D]` and `y [N, targets]`, in [0, 1]; NaN where all rows of either are alike."""
    f, y = f - f.mean(0), y - y.mean(0)
    small = f.T @ f if len(f) > f.shape[1] else f @ f.T  # the two have one norm
    norms = np.linalg.norm(small) * np.linalg.norm(y.T @ y)
    return float((f.T @ y).ravel() @ (f.T @ y).ravel() / norms) if norms > 0 else np.nan
