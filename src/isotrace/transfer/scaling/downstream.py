"""Whether a task's error falls with parameters or tokens as the loss does: the same law, with exponents of either sign.

An exponent that may only be positive has no interval with 0 in it. Here α and β may be negative (an error that rises),
A and B are parts of the error at the runs' mean sizes, and their priors say only that all three parts are of its size.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from isotrace.base.errors import InputError
from isotrace.transfer.scaling.law import Runs
from isotrace.transfer.scaling.posterior import SETTLED, Fit, Priors, fit_law

SIDES = (-2.0, 2.0)


@dataclass(frozen=True, eq=False)
class TaskLaw:
    """alpha, beta: 90 % intervals of the exponents of parameters and tokens. `fit.residuals` over either show
    saturation or decline. verdict: what the intervals say."""

    task: str
    fit: Fit
    alpha: tuple[float, float]
    beta: tuple[float, float]
    verdict: str


def downstream(runs: Runs, errors: Mapping[str, np.ndarray], seed: int) -> dict[str, TaskLaw]:
    """By task, of `errors[task] [n]` > 0 of the `runs` (1 − AUROC, 1 − R²), NaN where a run was not measured. Penalties
    of learning rate and shape are fitted as for the loss. Raises InputError as `Runs` does."""
    found = {}
    for number, (task, error) in enumerate(errors.items()):
        if error.shape != runs.loss.shape:
            raise InputError(f"{task} has {len(error)} errors for {len(runs.loss)} runs: give NaN where there is none.")
        known = ~np.isnan(error)
        own = _part(replace(runs, loss=np.where(known, error, 1.0)), known)
        size = (float(np.log(own.loss).mean() - np.log(3)), 1.5)
        fit = fit_law(own, seed * 1_000_003 + number, Priors(size, size, size, SIDES, centred=True))
        alpha, beta = fit.interval("alpha"), fit.interval("beta")
        found[task] = TaskLaw(task, fit, alpha, beta, _verdict(alpha, beta, fit.r_hat))
    return found


def _part(runs: Runs, known: np.ndarray) -> Runs:
    return Runs(
        runs.params[known], runs.tokens[known], runs.loss[known],
        None if runs.learning_rate is None else runs.learning_rate[known],
        None if runs.batch is None else runs.batch[known],
        {name: values[known] for name, values in runs.shapes.items()},
    )  # fmt: skip


def _verdict(alpha: tuple[float, float], beta: tuple[float, float], r_hat: float) -> str:
    if not r_hat < SETTLED:
        return f"cannot tell: the draws have not settled (R̂ {r_hat:.2f})"
    said = []
    for what, (low, high) in (("parameters", alpha), ("tokens", beta)):
        said.append(f"{'falls' if low > 0 else 'rises' if high < 0 else 'nothing shows that it falls'} with {what}")
    return "; ".join(said)
