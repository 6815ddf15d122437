"""Cross-validated score of a linear probe of the layer that suits it best."""

import numpy as np

from isotrace.base.errors import InputError
from isotrace.probing.crossed import STRENGTHS, crossed
from isotrace.probing.linear import fitted, searched
from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor


@predictor("probe_best_layer", source="usual practice")
def best_layer(evidence: Evidence) -> float:
    """As `probe`, of the layer that does best on the fold that chooses the penalty, anew in every fold."""
    if not evidence.layers:
        raise InputError("it needs the hidden states of layers, and there are none")
    found = []
    for fold in evidence.folds:
        best = max(evidence.layers, key=lambda x, fold=fold: _chosen_on(evidence, x, *fold[:2]))
        found.append(crossed(best, evidence.y, evidence.kind, [fold], evidence.classes).outputs)
    return evidence.worth(np.nansum(found, 0) + np.where(np.isfinite(found).any(0), 0, np.nan))


def _chosen_on(evidence: Evidence, x: np.ndarray, fit: np.ndarray, valid: np.ndarray) -> float:
    """What a probe fitted on `fit` is worth on `valid`, at the penalty that is best there; −∞ where that has one class
    only."""
    y, task, rows = evidence.y, evidence.kind, np.concatenate([fit, valid])
    inner = [(np.arange(len(fit)), np.arange(len(fit), len(rows)))]
    _, strength = searched(x[rows], y[rows], task, STRENGTHS[task], inner)
    weight, bias = fitted(x[fit], y[fit], task, strength)
    outputs = np.full((len(y), len(bias)), np.nan)
    outputs[valid] = x[valid] @ weight + bias
    worth = evidence.worth(outputs)
    return worth if np.isfinite(worth) else -np.inf
