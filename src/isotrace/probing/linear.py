"""Linear readouts: standardise → ridge or logistic regression, the penalty chosen on held-out groups."""

from collections.abc import Sequence
from typing import Any, Literal
from warnings import catch_warnings, filterwarnings, simplefilter

import numpy as np
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Task = Literal["classification", "regression"]
Weights = tuple[np.ndarray, np.ndarray]
"""(`[d, outputs]`, `[outputs]`) float64 on raw inputs, standardisation folded in."""


def searched(
    x: np.ndarray, y: np.ndarray, task: Task, strengths: Sequence[float], cv: Any, groups: np.ndarray | None = None
) -> tuple[Weights, float]:
    """The readout of `x [n, d]` fitted on all rows, and the strength (alpha of ridge, C of logistic regression) that
    predicts the held-out rows of `cv` best, by R², AUROC or, of several classes, accuracy; `cv` and
    `groups` as scikit-learn takes them. Where none can be told apart the first stands."""
    if task == "regression":
        x = x.astype(np.float64)  # with little penalty the normal equations are ill-conditioned in float32
        model, name, scoring = Ridge(), "ridge__alpha", "r2"
    else:
        model, name = LogisticRegression(max_iter=2_000), "logisticregression__C"
        scoring = "roc_auc" if len(np.unique(y)) == 2 else "accuracy"
    pipeline = make_pipeline(StandardScaler(), model)
    search = GridSearchCV(pipeline, {name: list(strengths)}, scoring=scoring, cv=cv, error_score=np.nan)
    with catch_warnings():
        # a fold without one of the classes has no score: such folds cannot choose, and the first strength stands
        simplefilter("ignore", UndefinedMetricWarning)
        filterwarnings("ignore", "(.*test scores are non-finite|.*fits failed|The least populated class)", UserWarning)
        best = search.fit(x, y, groups=groups)
    return _folded(best.best_estimator_), float(best.best_params_[name])


def fitted(x: np.ndarray, y: np.ndarray, task: Task, strength: float) -> Weights:
    model = Ridge(strength) if task == "regression" else LogisticRegression(C=strength, max_iter=2_000)
    return _folded(make_pipeline(StandardScaler(), model).fit(x, y))


def _folded(pipeline: Any) -> Weights:
    scaler, linear = pipeline[0], pipeline[1]
    coefficient = np.atleast_2d(linear.coef_).astype(float) / scaler.scale_
    return coefficient.T, np.atleast_1d(linear.intercept_) - coefficient @ scaler.mean_
