"""Manifold steering: along the curve that the means of an ordered or cyclic property lie on, not straight through.

The means of the states of every value are reduced to principal components and joined by a cubic spline, a periodic one
where the values go round. How well any spline does is told by leaving each value out.
"""

from collections.abc import Callable

import numpy as np
import torch
from scipy.interpolate import CubicSpline

from isotrace.base.errors import InputError
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.paths import PathEdit
from isotrace.steering.states import How

LEAST = 7
"""Values: through fewer any spline looks good."""
POINTS = 50
Curve = Callable[[np.ndarray], np.ndarray]
"""`[m]` values → `[m, d]` points."""


@direction(
    "manifold", labels="ordered or cyclic values, ≥ 7", cost="N F", tuned="PCA width", first=1,
    source="Manifold steering 2025; Engels et al. 2025 (circular features)",
)  # fmt: skip
def manifold(
    fitting: Fitting, start: float | None = None, stop: float | None = None, period: float | None = None,
    width: int = 64, bins: int = 0, how: How | None = None,
) -> list[PathEdit]:  # fmt: skip
    """From one value of a property to another along the curve of the means of all values

    `start`, `stop`: by default the smallest and the largest value, and their cyclic neighbour half a `period` on.
    `bins`: numbers that are nearly all different are put into so many quantiles of equal size. `width`: principal
    components of the means. Raises InputError for labels that are classes of words, and for fewer than 7 values."""
    values = fitting.contrast.values
    if fitting.contrast.classes:
        try:
            values = np.asarray([float(name) for name in fitting.contrast.classes])[values.astype(int)]
        except ValueError:
            raise InputError("a manifold needs an ordered property: give numbers as labels, not words.") from None
    values = binned(values, bins) if bins else values
    knots = np.unique(values)
    if len(knots) < LEAST or len(knots) > len(values) / 2:
        raise InputError(
            f"{len(knots)} different values in {len(values)} sequences: a curve needs {LEAST} values or more, and two "
            "sequences of each; put numbers together with bins."
        )
    start = float(knots[0]) if start is None else start
    stop = (float(knots[-1]) if period is None else start + period / 2) if stop is None else stop
    edits, steps = [], np.linspace(start, stop, POINTS)
    for layer, x in sorted(fitting.states(how).items()):
        centroids = np.stack([x.numpy()[values == knot].mean(0) for knot in knots])
        curve = spline(knots, centroids, width, period)
        path = torch.from_numpy(curve(steps))
        points = path - path[:1]
        edits.append(PathEdit(components=fitting.components, layer=layer, points=fitting.shaped(layer, points)))
    return edits


def spline(knots: np.ndarray, centroids: np.ndarray, width: int = 64, period: float | None = None) -> Curve:
    """The cubic spline through `centroids [values, d]` in their first `width` principal components."""
    mean = centroids.mean(0)
    axes = np.linalg.svd(centroids - mean, full_matrices=False)[2][:width]
    reduced = (centroids - mean) @ axes.T
    if period is None:
        inner = CubicSpline(knots, reduced, bc_type="natural")
        return lambda u: mean + inner(np.asarray(u)) @ axes
    if knots[-1] - knots[0] >= period:
        raise InputError(f"values from {knots[0]:g} to {knots[-1]:g} are longer than a period of {period:g}.")
    around = CubicSpline([*knots, knots[0] + period], [*reduced, reduced[0]], bc_type="periodic")
    return lambda u: mean + around(np.asarray(u)) @ axes


def left_out(knots: np.ndarray, centroids: np.ndarray, width: int = 64, period: float | None = None) -> np.ndarray:
    """`[inner values]`: distance of each mean to the spline of all others, as a share of its distance to the straight
    line between its neighbours; below 1 the curve tells more than its chords. Ends are not predicted."""
    found = []
    for i in range(1, len(knots) - 1):
        rest = np.arange(len(knots)) != i
        guess = spline(knots[rest], centroids[rest], width, period)(knots[i : i + 1])[0]
        share = (knots[i] - knots[i - 1]) / (knots[i + 1] - knots[i - 1])
        chord = (1 - share) * centroids[i - 1] + share * centroids[i + 1]
        found.append(np.linalg.norm(guess - centroids[i]) / max(np.linalg.norm(chord - centroids[i]), 1e-12))
    return np.asarray(found)


def energy(path: np.ndarray, behaviour: np.ndarray) -> float:
    """∫ distance of a path of distributions `[steps, tokens]` to the nearest of `behaviour [points, tokens]`, over the
    path: Bhattacharyya's, −log Σ √(p q)."""
    overlap = np.sqrt(np.clip(path, 0, None)) @ np.sqrt(np.clip(behaviour, 0, None)).T
    return float(-np.log(np.clip(overlap.max(1), 1e-300, 1)).mean())


def binned(values: np.ndarray, bins: int) -> np.ndarray:
    """The mean of its quantile bin, for each value."""
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    codes = np.searchsorted(edges, values, side="right")
    return np.asarray([values[codes == code].mean() for code in codes])
