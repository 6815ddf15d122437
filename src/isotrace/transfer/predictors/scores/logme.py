"""LogME: the evidence of a Bayesian linear model of the labels, the prior of its weights fitted."""

from dataclasses import dataclass

import numpy as np

from isotrace.base.errors import InputError
from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor

TOLERANCE, STEPS = 1e-3, 100
ROUNDING = 1e-12
"""Share of ‖y‖² that a residual is by rounding alone."""


@predictor("logme", source="You et al. 2021, arXiv 2102.11005, eq. 5, with the term ½(D − k) ln α that its code omits")
def logme(evidence: Evidence) -> float:
    """ln p(labels | embeddings) per label, largest over the prior's and the noise's variance; mean over classes.

    Embeddings and targets are centred in place of an intercept, which takes one of N dimensions: with all N of them,
    and N ≤ D, the dimension in which nothing is left drives the noise to 0 and the evidence to infinity. It has no
    upper bound either where labels are an exact linear function of the embeddings; the value there is that at a
    residual of 1e-12 of the labels' squares.
    """
    f = evidence.embeddings - evidence.embeddings.mean(0)
    return float(np.mean([fitted(f, y - y.mean(), len(f) - 1).value for y in evidence.targets.T]))


@dataclass(frozen=True)
class Fitted:
    """`value`: ln N(y; 0, I/β + FFᵀ/α) / n, of the n dimensions in which y may lie. `rank` of F."""

    value: float
    alpha: float
    beta: float
    rank: int


def fitted(f: np.ndarray, y: np.ndarray, n: int) -> Fitted:
    """Of `f [N, D]` and `y [N]` by the fixed point of α and β (MacKay 1992); `n`: N, or N − 1 of centred ones."""
    width, (u, s, _) = f.shape[1], np.linalg.svd(f, full_matrices=False)
    rank = int((s > s.max() * max(f.shape) * np.finfo(float).eps).sum())
    if not rank:
        raise InputError("the embeddings are all alike")
    sigma, z = s[:rank] ** 2, (u[:, :rank].T @ y) ** 2
    rest, t, alpha, beta = float(y @ y - z.sum()), 1.0, 1.0, 1.0
    floor = ROUNDING * float(y @ y)
    for _ in range(STEPS):
        alpha, beta, _, _ = _step(sigma, z, rest, n, t, floor)
        before, t = t, alpha / beta
        # without any signal the best prior is a point: t grows beyond all eigenvalues, and the evidence stands still
        if abs(t - before) <= TOLERANCE * before or t > sigma.sum() / ROUNDING:
            break
    _, _, m2, e2 = _step(sigma, z, rest, n, t, floor)
    value = width * np.log(alpha) + n * np.log(beta) - np.log(alpha + beta * sigma).sum()
    value -= (width - rank) * np.log(alpha) + beta * e2 + alpha * m2 + n * np.log(2 * np.pi)
    return Fitted(float(value) / (2 * n), alpha, beta, rank)


def _step(
    sigma: np.ndarray, z: np.ndarray, rest: float, n: int, t: float, floor: float
) -> tuple[float, float, float, float]:  # fmt: skip
    """(α, β, m², e²) at t = α/β: of the posterior mean m its square, and the squared residual, at least `floor`."""
    gamma = float((sigma / (sigma + t)).sum())
    m2 = float((sigma * z / (t + sigma) ** 2).sum())
    e2 = max(floor, float((z * (t / (t + sigma)) ** 2).sum()) + rest)
    return gamma / m2, (n - gamma) / e2, m2, e2
