"""How a score grows with the number of features, and how few reach what a dense probe does."""

from warnings import catch_warnings, simplefilter

import numpy as np
from sklearn.linear_model import orthogonal_mp

from isotrace.base.errors import InputError
from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.features.bases import features_in, of_each_basis
from isotrace.transfer.predictors.features.sparse import SCREENED, screened
from isotrace.transfer.predictors.probes.probe import probe

SHARE = 0.9
"""Of what the dense probe is better than chance."""


@of_each_basis("few", source="ours; orthogonal matching pursuit, Pati et al. 1993")
def few(evidence: Evidence, basis: str) -> float:
    """Mean score with the best 1, 2, 4, … up to N/10 features, chosen inside folds."""
    return float(np.mean([*curve(evidence, features_in(evidence, basis)).values()]))


@of_each_basis("fewest", direction=-1, source="ours")
def fewest(evidence: Evidence, basis: str) -> float:
    """The smallest of these numbers whose score is 90 % of the dense probe's, counted from chance.

    Raises InputError where none is, which says that the task is new, and where the dense probe is not two standard
    errors above chance.
    """
    x, dense, (chance, clear) = features_in(evidence, basis), probe(evidence), _chance(evidence)
    if not dense > clear:
        raise InputError(
            f"the dense probe is not clearly better than chance ({dense:.3f}): nothing is known of the task"
        )
    found = curve(evidence, x)
    enough = [m for m, score in found.items() if score - chance >= SHARE * (dense - chance)]
    if not enough:
        raise InputError(f"{max(found)} features do not reach {SHARE:.0%} of the dense probe: the task is new to them")
    return float(min(enough))


def _chance(evidence: Evidence) -> tuple[float, float]:
    """(score of chance, two standard errors above it): of R² by those of a correlation, of the AUROC by ranks' (Mann
    and Whitney 1947)."""
    n = len(evidence.y)
    if evidence.kind == "regression":
        return 0.0, 4 / n
    counts = np.bincount(evidence.bins)
    return 0.5, 0.5 + 2 * float(np.sqrt((n + 1) / (12 * counts * (n - counts))).mean())


def curve(evidence: Evidence, x: np.ndarray) -> dict[int, float]:
    """Number of features → score of `probe`, of least squares on the features that orthogonal matching pursuit takes
    first, for every target its own."""
    most = max(1, len(x) // 10)
    sizes = sorted({*(2**k for k in range(most.bit_length())), most})
    outputs = np.full((len(sizes), *evidence.targets.shape), np.nan)
    for fit, valid, test in evidence.folds:
        rows = np.concatenate([fit, valid])
        for t, y in enumerate(evidence.targets.T):
            _, z, mean = screened(x, y, rows, SCREENED)
            n = min(most, z.shape[1])
            if not n:
                raise InputError("no feature varies within a fold")
            with catch_warnings():
                simplefilter("ignore", RuntimeWarning)  # it ends early where features depend on each other
                path = orthogonal_mp(z[rows], y[rows] - mean, n_nonzero_coefs=n, return_path=True)
            path = np.asarray(path).reshape(z.shape[1], -1)
            for i, size in enumerate(sizes):
                outputs[i, test, t] = z[test] @ path[:, min(size, path.shape[1]) - 1] + mean
    return {size: evidence.worth(one) for size, one in zip(sizes, outputs, strict=True)}
