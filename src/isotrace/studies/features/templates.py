"""Eight shapes of a response curve, fitted by least squares and compared by BIC.

y = a + b · shape(x; θ): a and b follow from θ by a straight-line fit, θ by least squares from several starts, of which
the best counts. BIC = n ln(RSS / n) + k ln n over n points (Schwarz 1978), k numbers fitted besides the noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import minimize

from isotrace.base.errors import InputError

LEAST_GAP = 10.0
"""By which the BIC of a template must be below the next one's to be named."""
GRID = (0.1, 0.3, 0.5, 0.7, 0.9)
Shape = Callable[[np.ndarray, Sequence[float]], np.ndarray]


@dataclass(frozen=True)
class Template:
    """`shape(x, θ)` of `x [n]`, which runs from 0 to 1; `starts`: of every θ. `k`: numbers fitted. `holds`: templates
    that it is for some θ."""

    name: str
    shape: Shape | None
    starts: tuple[tuple[float, ...], ...]
    formula: str
    holds: tuple[str, ...] = ()

    @property
    def k(self) -> int:
        return 1 if self.shape is None else 2 + len(self.starts)


@dataclass(frozen=True, eq=False)
class Fit:
    """`fitted [n]`; `bic`, less is better; `r2` of the points."""

    template: Template
    parameters: tuple[float, ...]
    fitted: np.ndarray
    bic: float
    r2: float


def _edge(x: np.ndarray, c: float, falling: float) -> np.ndarray:
    """Distance beyond c, on the right of it or, where falling, on the left."""
    return np.maximum(c - x if falling > 0.5 else x - c, 0)


def _saturating(x: np.ndarray, t: Sequence[float]) -> np.ndarray:
    return 1 - np.exp(-_edge(x, 1.0 if t[1] > 0.5 else 0.0, t[1]) / max(abs(t[0]), 1e-3))


def _bump(x: np.ndarray, t: Sequence[float]) -> np.ndarray:
    """Its top lies within the curve: beyond, it would be another way to level off."""
    return np.exp(-((x - min(max(t[0], 0.0), 1.0)) ** 2) / (2 * max(abs(t[1]), 0.02) ** 2))


def _log(x: np.ndarray, t: Sequence[float]) -> np.ndarray:
    return np.log(x + min(max(abs(t[0]), 1e-3), 10.0))


def _step(x: np.ndarray, t: Sequence[float]) -> np.ndarray:
    """The threshold as a share of the points, since nothing changes between two of them."""
    return (x.argsort().argsort() >= t[0] * len(x)).astype(float)


SIDES = (0.0, 1.0)
EVERYWHERE = tuple(np.linspace(0.05, 0.95, 19).tolist())
TEMPLATES = (
    Template("constant", None, (), "a"),
    Template("linear", lambda x, t: x, (), "a + b x"),
    Template("relu", lambda x, t: _edge(x, t[0], t[1]), (GRID, SIDES), "a + b max(0, ±(x − c))", ("linear",)),
    Template("step", _step, (EVERYWHERE,), "a + b [x > c]"),
    Template("saturating", _saturating, ((0.05, 0.15, 0.4), SIDES), "a + b (1 − exp(−±x / s))", ("linear",)),
    Template("bump", _bump, (GRID, (0.05, 0.15, 0.3)), "a + b exp(−(x − c)² / 2s²)"),
    Template("power", lambda x, t: x ** min(max(t[0], 0.1), 10.0), ((0.3, 2.0, 4.0),), "a + b x^p", ("linear",)),
    Template(
        "log", lambda x, t: np.log(x + min(max(abs(t[0]), 1e-3), 10.0)), ((0.01, 0.1),), "a + b ln(x + c)", ("linear",)
    ),
)
"""A side (rising, falling) is a choice and counts as a number, as every other one does."""


def fit(x: np.ndarray, y: np.ndarray) -> list[Fit]:
    """Every template on `x, y [n]`, the least BIC first. Raises InputError for fewer than 10 points, and for x or y
    that are the same everywhere."""
    if len(x) < 10 or np.ptp(x) == 0 or np.ptp(y) == 0:
        raise InputError(f"{len(x)} points, x from {x.min()} to {x.max()}: give at least 10 that differ in x and in y.")
    z = (x - x.min()) / np.ptp(x)
    return sorted((_fit(template, z, y) for template in TEMPLATES), key=lambda one: one.bic)


def named(fits: Sequence[Fit]) -> str | None:
    """The best template where it is `ahead` by `LEAST_GAP`, and is not the constant."""
    return fits[0].template.name if ahead(fits)[0] >= LEAST_GAP and fits[0].template.shape is not None else None


def ahead(fits: Sequence[Fit]) -> tuple[float, str]:
    """(by how much the BIC of the best is below the next one's, its name). Templates that hold the best as a special
    case are no rivals: a straight line can be ahead of them by no more than what their further numbers cost."""
    rival = next(one for one in fits[1:] if fits[0].template.name not in one.template.holds)
    return rival.bic - fits[0].bic, rival.template.name


def _fit(template: Template, z: np.ndarray, y: np.ndarray) -> Fit:
    if template.shape is None:
        return _scored(template, (), np.full(len(y), y.mean()), y)
    shape, found = template.shape, []

    def loss(theta: Sequence[float]) -> float:
        return float(((_line(shape(z, theta), y) - y) ** 2).sum())

    for start in product(*template.starts):
        theta = list(start)
        if theta:
            theta = minimize(loss, theta, method="Nelder-Mead", options={"maxfev": 120, "xatol": 1e-4}).x.tolist()
        found.append((loss(theta), theta))
    best = min(found)[1]
    return _scored(template, tuple(best), _line(shape(z, best), y), y)


def _line(s: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The straight line in `s` nearest to `y`, at every point."""
    centred = s - s.mean()
    spread = float(centred @ centred)
    return y.mean() + (centred * (centred @ y) / spread if spread > 1e-12 else 0.0)


def _scored(template: Template, parameters: tuple[float, ...], fitted: np.ndarray, y: np.ndarray) -> Fit:
    rss, total, n = float(((y - fitted) ** 2).sum()), float(((y - y.mean()) ** 2).sum()), len(y)
    rss = max(rss, 1e-12 * total)  # an exact fit is as good as rounding lets it be
    return Fit(template, parameters, fitted, n * np.log(rss / n) + template.k * np.log(n), 1 - rss / total)
