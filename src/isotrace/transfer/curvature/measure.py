"""What a measure of curvature or landscape is, the registry of them, and measuring many at once.

None of them is known to tell which checkpoint transfers; they are controls. One file per measure, registered by a
decorator, all run alike: `run(view, seed, progress, **settings)`.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress
from isotrace.base.registry import Registry
from isotrace.transfer.curvature.loss import Loss, View

Need = Literal["draws", "other"]
"""Besides a loss: labels drawn from the model, see `Loss.draws`; the parameters of a second model."""


@dataclass(frozen=True)
class Estimate:
    """`error`: standard error of `value`, None where nothing was sampled. `reason`: why the value is NaN, else what a
    reader must know."""

    quantity: str
    value: float
    error: float | None = None
    reason: str = ""


Run = Callable[..., list[Estimate]]


@dataclass(frozen=True)
class Measure:
    """`needs`: besides a loss. `cost`: in words, with default settings. `source`: where it is from."""

    name: str
    run: Run
    needs: tuple[Need, ...]
    cost: str
    source: str


@dataclass(frozen=True)
class Row:
    """An estimate with what its measure cost: products with the Hessian, gradients and values of the whole loss, and
    seconds; all estimates of one measure share these."""

    loss: str
    measure: str
    quantity: str
    value: float
    error: float | None
    products: int
    gradients: int
    values: int
    seconds: float
    reason: str


MEASURES: Registry[Measure] = Registry(
    "measure", "isotrace.curvature",
    {
        name: f"isotrace.transfer.curvature.measures.{name}"
        for name in (
            "eigenvalues", "trace", "hutchpp", "density", "fisher", "sharpness", "relative", "learning_coefficient",
            "barrier", "plane",
        )
    },
)  # fmt: skip


def measure(name: str, *, cost: str, source: str, needs: tuple[Need, ...] = ()) -> Callable[[Run], Run]:
    def add(run: Run) -> Run:
        MEASURES.register(name, Measure(name, run, needs, cost, source))
        return run

    return add


def measure_all(
    loss: Loss, names: Sequence[str], seed: int, progress: Progress, *, other: Tensor | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Row]:  # fmt: skip
    """The estimates of the measures `names`, in their order, and with trace and eigenvalues `trace_per_parameter` and
    `lambda_1_over_trace`, which compare models of different sizes. `other [P]`: a second model's parameters.
    `settings`: measure → its keyword arguments.

    Raises InputError for a name that is not known, a need that is not met and settings of a measure not asked for.
    """
    settings = settings or {}
    if foreign := set(settings) - set(names):
        raise InputError(
            f"settings of {', '.join(sorted(foreign))}, which is not measured: name it, or leave them out."
        )
    chosen = [MEASURES[name] for name in names]
    for one in chosen:
        if "draws" in one.needs and not loss.draws:
            raise InputError(f"{one.name} needs labels drawn from the model, and {loss.name} has none: leave it out.")
        if "other" in one.needs and other is None:
            raise InputError(f"{one.name} needs the parameters of a second model: give other, or leave it out.")
    rows: list[Row] = []
    for one in chosen:
        view, started = View(loss, other), time.perf_counter()
        found = one.run(view, seed, progress, **settings.get(one.name, {}))
        cost = (view.n_products, view.n_gradients, view.n_values, time.perf_counter() - started)
        rows += [Row(loss.name, one.name, e.quantity, e.value, e.error, *cost, e.reason) for e in found]
    return rows + _normalised(rows, len(loss.at))


def _normalised(rows: Sequence[Row], n_parameters: int) -> list[Row]:
    """No products of their own."""
    by = {(row.measure, row.quantity): row for row in rows}
    trace, top = by.get(("trace", "trace")), by.get(("eigenvalues", "lambda_1"))
    if trace is None:
        return []
    error = None if trace.error is None else trace.error / n_parameters
    free: dict[str, Any] = {"measure": "normalised", "products": 0, "gradients": 0, "values": 0, "seconds": 0.0}
    per = replace(trace, **free, quantity="trace_per_parameter", value=trace.value / n_parameters, error=error)
    if top is None:
        return [per]
    ratio = Row(trace.loss, **free, quantity="lambda_1_over_trace", value=math.nan, error=None, reason="")
    if not trace.value > 2 * (trace.error or 0):
        return [per, replace(ratio, reason="the trace is not clearly above 0: take more products")]
    value = top.value / trace.value
    return [per, replace(ratio, value=value, error=None if trace.error is None else value * trace.error / trace.value)]


def mean_and_error(values: Sequence[float] | Tensor) -> tuple[float, float]:
    """Mean and its standard error; NaN for the error of fewer than two values."""
    found = torch.as_tensor(values, dtype=torch.float64)
    return float(found.mean()), float(found.std() / math.sqrt(len(found))) if len(found) > 1 else math.nan


def at_least(least: int, **given: int) -> None:
    """Raises InputError for a setting below `least`."""
    for name, value in given.items():
        if value < least:
            raise InputError(f"{name} = {value}: give {least} or more.")
