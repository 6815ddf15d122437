"""ROGI-XD: the roughness of a property over the embeddings, as they are seen ever more coarsely."""

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import pdist

from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor

STEP, MOST = 0.01, 3_000


@predictor("rogi_xd", direction=-1, source="Graff et al. 2023, J. Chem. Inf. Model., arXiv 2305.08238, and its code")
def rogi_xd(evidence: Evidence) -> float:
    """2 sd(y) less the mean of 2 sd of cluster means along complete linkage; of at most 3,000 sequences, mean over
    classes.

    Distances are in units of the largest one, which is computed and not estimated.
    """
    n = len(evidence.y)
    rows = np.random.default_rng((evidence.seed, 12)).permutation(n)[:MOST] if n > MOST else np.arange(n)
    return float(np.mean([roughness(evidence.embeddings[rows], y[rows]) for y in evidence.targets.T]))


def roughness(f: np.ndarray, y: np.ndarray) -> float:
    """Of `y [N]` over `f [N, D]`; NaN where all `y` or all `f` are alike."""
    distances = pdist(f)
    if not distances.max() > 0 or not np.ptp(y) > 0:
        return np.nan
    y, tree = (y - y.min()) / np.ptp(y), linkage(distances / distances.max(), "complete")
    x, sigma = [0.0], [2 * float(y.std())]
    for height in _thresholds(tree[:, 2]):
        clusters = fcluster(tree, height, "distance") - 1
        sizes = np.bincount(clusters)
        means = np.bincount(clusters, y) / sizes
        # all of one size-weighted mean, that of y
        sigma.append(2 * float(np.sqrt((sizes * (means - y.mean()) ** 2).sum() / len(y))))
        x.append(1 - np.log(len(sizes)) / np.log(len(y)))
    return sigma[0] - float(np.trapezoid(sigma, x))


def _thresholds(heights: np.ndarray) -> list[float]:
    """Ascending merge heights at least STEP apart, the last one among them."""
    found = [0.0]
    for height in heights:
        if height >= found[-1] + STEP:
            found.append(float(height))
    return [*found[1:], *([] if found[-1] == heights[-1] else [float(heights[-1])])]
