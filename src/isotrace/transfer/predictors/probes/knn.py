"""Cross-validated score of nearest neighbours."""

import numpy as np
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor

NEIGHBOURS = 5


@predictor("knn", source="usual practice")
def knn(evidence: Evidence) -> float:
    """The mean label of the five nearest sequences by cosine, in the folds of `probe`."""
    x, y = evidence.embeddings, evidence.y
    kind = KNeighborsRegressor if evidence.kind == "regression" else KNeighborsClassifier
    outputs = np.full((len(y), len(evidence.classes) if len(evidence.classes) > 2 else 1), np.nan)
    for fit, valid, test in evidence.folds:
        rows = np.concatenate([fit, valid])
        model = kind(min(NEIGHBOURS, len(rows)), metric="cosine").fit(x[rows], y[rows])
        if isinstance(model, KNeighborsClassifier):
            shares = np.asarray(model.predict_proba(x[test]))
            outputs[test] = shares if outputs.shape[1] > 1 else shares[:, 1:]
        else:
            outputs[test] = model.predict(x[test])[:, None]
    return evidence.worth(outputs)
