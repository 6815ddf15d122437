"""N-LEEP: how well the labels follow from which component of a Gaussian mixture a sequence belongs to."""

from warnings import catch_warnings, simplefilter

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor

COMPONENTS, PER_CLASS = 50, 3


@predictor("nleep", source="Li et al. 2021, arXiv 2102.08541, on LEEP, Nguyen et al. 2020, arXiv 2002.12462")
def nleep(evidence: Evidence) -> float:
    """Mean ln Σ_z P(y_i|z) θ_i(z), θ the posterior of 3·C components on 50 principal axes; numbers in quantile bins.

    Covariances are diagonal: in 50 dimensions there are too few sequences for full ones.
    """
    f, bins = evidence.embeddings, evidence.bins
    n_axes = min(COMPONENTS, *np.subtract(f.shape, (1, 0)))
    axes = PCA(n_axes, svd_solver="full").fit_transform(f)
    n_classes = int(bins.max()) + 1
    mixture = GaussianMixture(min(PER_CLASS * n_classes, len(f)), covariance_type="diag", random_state=evidence.seed)
    with catch_warnings():
        simplefilter("ignore", ConvergenceWarning)  # the posterior of the last step is as good a clustering
        scaled = axes / axes[:, 0].std()  # the mixture's floor of variances has no unit of its own
        theta = mixture.fit(scaled).predict_proba(scaled)
    joint = (bins[:, None] == np.arange(n_classes)).T @ theta / len(f)
    of_label = joint / np.maximum(joint.sum(0), np.finfo(float).tiny)  # no sequence belongs to an empty component
    return float(np.log((of_label[bins] * theta).sum(1)).mean())
