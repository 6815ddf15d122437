"""The law: ln loss = ln(A N^−α + B D^−β + E), and penalties for a learning rate or a shape that is off its best.

Form and grid of point estimates: Hoffmann et al. 2022 (arXiv 2203.15556), §3.3; penalties: the methods' §8.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from isotrace.base.errors import InputError

LEAST = 8
"""Runs below which no law is fitted."""
DELTA = 1e-3
SHAPES = {"feed_forward_ratio": (np.log(4), np.log(2)), "d_head": (np.log(64), 1.0), "aspect": (np.log(64), 2.0)}
"""Mean and sd of the logarithm of the best shape, by prior; aspect = width / layers."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Training runs, arrays `[n]` > 0: `params` N, `tokens` D, `loss` (nats, or an error). `learning_rate` and `batch`
    (sequences per step) where they are known, `shapes` by the names of SHAPES.

    Raises InputError for other shapes, numbers that are not positive, fewer than LEAST runs, one size or one number of
    tokens in all, and learning rates that vary without a batch."""

    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    learning_rate: np.ndarray | None = None
    batch: np.ndarray | None = None
    shapes: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        every = {"params": self.params, "tokens": self.tokens, "loss": self.loss, **self.shapes}
        every |= {k: v for k, v in (("learning_rate", self.learning_rate), ("batch", self.batch)) if v is not None}
        n = len(self.loss)
        for name, values in every.items():
            if values.shape != (n,) or not (np.isfinite(values) & (values > 0)).all():
                raise InputError(f"{name} of {n} runs must be {n} numbers above 0: leave out runs that have none.")
        if n < LEAST:
            raise InputError(f"{n} runs, and a law of five constants needs at least {LEAST}.")
        for name in ("params", "tokens"):
            if not _varies(every[name]):
                raise InputError(f"all runs have {every[name][0]:g} {name}: give runs of several, or no law is seen.")
        if unknown := {*self.shapes} - {*SHAPES}:
            raise InputError(f"no shape {min(unknown)}: give some of {', '.join(SHAPES)}.")
        if _varies(self.learning_rate) and self.batch is None:
            raise InputError("the best learning rate depends on the batch: give that of every run.")

    @property
    def rated(self) -> bool:
        """Whether the learning rate varies, so that a penalty can be seen."""
        return _varies(self.learning_rate)

    @property
    def shaped(self) -> tuple[str, ...]:
        """Shapes that vary."""
        return tuple(name for name in SHAPES if _varies(self.shapes.get(name)))


def _varies(values: np.ndarray | None) -> bool:
    return values is not None and len(np.unique(values)) > 1


@dataclass(frozen=True)
class Law:
    """The five constants; exponents may be negative, for an error that rises."""

    A: float
    B: float
    alpha: float
    beta: float
    E: float

    def loss(self, params: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return self.A * params**-self.alpha + self.B * tokens**-self.beta + self.E


def optimum(
    A: np.ndarray, B: np.ndarray, alpha: np.ndarray, beta: np.ndarray, flops: float
) -> tuple[np.ndarray, np.ndarray]:
    """(N*, D*) of least loss at 6 N D = `flops`: N* = G (C/6)^{β/(α+β)}, D* = (C/6)^{α/(α+β)}/G, G =
    (αA/(βB))^{1/(α+β)}. NaN where an exponent is not above 0: then there is no optimum."""
    alpha, beta = (np.where(x > 0, x, np.nan) for x in (alpha, beta))
    both = alpha + beta
    g = (alpha * A / (beta * B)) ** (1 / both)
    return g * (flops / 6) ** (beta / both), (flops / 6) ** (alpha / both) / g


def point_estimate(runs: Runs, exponents: tuple[float, float] = (0.0, 2.0)) -> Law:
    """Least Huber loss (δ 1e-3) of ln loss without penalties, by L-BFGS from the best points of a 5 × 5 × 10 × 10 × 10
    grid: the best of each pair of exponents.

    The grid of A and B is laid at the runs' mean sizes, where either is a part of the loss, whatever its unit.
    """
    n, d, y = np.log(runs.params), np.log(runs.tokens), np.log(runs.loss)
    middle_n, middle_d = n.mean(), d.mean()
    n, d = n - middle_n, d - middle_d
    slopes, logs = np.linspace(*exponents, 5), np.linspace(y.min() - 6, y.max(), 10)
    terms = [np.exp(logs[None, :, None] - slopes[:, None, None] * x) for x in (n, d)]  # [slopes, logs, runs]
    value = np.full((5, 5, 10, 10, 10), np.inf)
    for i in range(5):
        for j in range(5):
            total = terms[0][i][:, None, None] + terms[1][j][None, :, None] + np.exp(logs)[:, None]
            value[i, j] = _huber(y - np.log(total)).sum(-1)
    best = value.reshape(25, -1).argmin(1)
    starts = [
        [logs[a], logs[b], slopes[cell // 5], slopes[cell % 5], logs[e]]
        for cell, (a, b, e) in enumerate(zip(*np.unravel_index(best, (10, 10, 10)), strict=True))
    ]

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        a, b, alpha, beta, e = theta
        parts = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
        mean = logsumexp(parts, axis=0)
        share = np.exp(parts - mean)
        residual = y - mean
        slope = -np.clip(residual, -DELTA, DELTA) / DELTA
        gradient = [slope @ share[0], slope @ share[1], -slope @ (share[0] * n), -slope @ (share[1] * d)]
        return float(_huber(residual).sum() / DELTA), np.array([*gradient, slope @ share[2]])

    free = (None, None)
    found = [
        minimize(objective, start, jac=True, method="L-BFGS-B", bounds=[free, free, exponents, exponents, free])
        for start in starts
    ]
    a, b, alpha, beta, e = min(found, key=lambda one: one.fun).x.tolist()
    ends = np.exp([a + alpha * middle_n, b + beta * middle_d, e]).tolist()
    return Law(ends[0], ends[1], alpha, beta, ends[2])


def _huber(residual: np.ndarray) -> np.ndarray:
    size = np.abs(residual)
    return np.where(size <= DELTA, residual**2 / 2, DELTA * (size - DELTA / 2))
