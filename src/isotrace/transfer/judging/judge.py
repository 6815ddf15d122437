"""A predictor of outcomes, judged: means over groups of tasks, beside the ceiling, the cost and what chance allows.

Every mean is over groups of tasks, of the means over their tasks. It has two 95 % bootstrap intervals: over groups of
tasks, for tasks like these, and over families of checkpoints, for checkpoints like these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from isotrace.base.errors import InputError
from isotrace.stats.bootstrap import bootstrap_weights, group_weights, interval
from isotrace.transfer.judging.agreement import MEASURES, agreement
from isotrace.transfer.judging.matrix import Matrix
from isotrace.transfer.judging.noise import Ceiling

Z = 1.96


@dataclass(frozen=True, eq=False)
class Predictor:
    """`scores [checkpoints, tasks]`: the larger, the better it should transfer; NaN where it says nothing. `seconds`
    and `flops` likewise: what it took."""

    name: str
    scores: np.ndarray
    seconds: np.ndarray
    flops: np.ndarray


@dataclass(frozen=True)
class Estimate:
    """A mean over `n_groups` groups of tasks, with its intervals; NaN where nothing is defined, intervals also for
    fewer than two groups or families."""

    value: float
    over_groups: tuple[float, float]
    over_families: tuple[float, float]
    n_groups: int


@dataclass(frozen=True)
class TaskJudged:
    """One task: `n` checkpoints with a score and an outcome, MEASURES, the ceiling of `spearman`, and whether the task
    is listed apart and counts in no mean."""

    task: str
    group: str
    n: int
    spearman: float
    kendall: float
    regret_1: float
    regret_3: float
    ceiling: float
    apart: bool


@dataclass(frozen=True, eq=False)
class Judged:
    """`means`: of MEASURES, and `share` = mean spearman / mean ceiling over the tasks that have both. `seconds`,
    `flops`: mean over checkpoints and tasks. `standard_error`: of one task's Spearman, 1/√(n − 1). `draws`: of
    MEASURES, `[1 + n_draws, tasks that count]`, the first as observed, then draws of families."""

    predictor: str
    tasks: tuple[TaskJudged, ...]
    means: Mapping[str, Estimate]
    seconds: float
    flops: float
    standard_error: float
    n_checkpoints: int
    groups: tuple[str, ...]
    draws: Mapping[str, np.ndarray]
    seed: int


def judge(
    predictor: Predictor, matrix: Matrix, ceilings: Mapping[str, Ceiling], *, seed: int, n_draws: int = 1_000
) -> Judged:
    """Against `matrix.y`; `ceilings` by task. Raises InputError for scores of another shape and a task without a
    ceiling."""
    if predictor.scores.shape != matrix.y.shape:
        raise InputError(f"{predictor.name} has scores {predictor.scores.shape}, the outcomes are {matrix.y.shape}.")
    if missing := next((task for task in matrix.tasks if task not in ceilings), None):
        raise InputError(f"no ceiling of {missing}: compute it from predictions of the test part.")
    weights = group_weights(matrix.families, n_draws, (seed, 11))
    found = [agreement(s, y, weights) for s, y in zip(predictor.scores.T, matrix.y.T, strict=True)]
    n = (np.isfinite(predictor.scores) & np.isfinite(matrix.y)).sum(0)
    tasks = tuple(
        TaskJudged(
            task, group, int(n[j]), **{name: float(found[j][name][0]) for name in MEASURES},
            ceiling=ceilings[task].value, apart=ceilings[task].apart,
        )
        for j, (task, group) in enumerate(zip(matrix.tasks, matrix.groups, strict=True))
    )  # fmt: skip
    count = [j for j, task in enumerate(tasks) if not task.apart]
    draws = {
        name: np.stack([found[j][name] for j in count], 1) if count else np.empty((1 + n_draws, 0)) for name in MEASURES
    }
    groups = tuple(tasks[j].group for j in count)
    few = len({*matrix.families}) < 2
    means = {name: _estimate(draws[name], groups, seed, few) for name in MEASURES}
    tops = np.array([tasks[j].ceiling for j in count])
    means["share"] = _estimate(draws["spearman"], groups, seed, few, tops)
    return Judged(
        predictor.name, tasks, means, _mean(predictor.seconds), _mean(predictor.flops),
        standard_error(len(matrix.checkpoints)), len(matrix.checkpoints), groups, draws, seed,
    )  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """`first` less `second`, by the same tasks, draws and families. `by`: of MEASURES. `times_seconds`, `times_flops`:
    how much more the first takes. `verdict`: of `spearman`: better, worse, or why it cannot be told."""

    first: str
    second: str
    by: Mapping[str, Estimate]
    times_seconds: float
    times_flops: float
    verdict: str


def compare(first: Judged, second: Judged) -> Comparison:
    """Paired. A win needs both intervals clear of 0, and as many groups of tasks as its size asks for, see
    `groups_needed`. Raises InputError for predictors judged on different tasks or draws."""
    if (first.groups, first.seed) != (second.groups, second.seed) or len(first.draws["spearman"]) != len(
        second.draws["spearman"]
    ):
        raise InputError("predictors are compared on the same outcomes and draws: judge both with one seed.")
    few = not np.isfinite(first.means["spearman"].over_families).all()
    by = {name: _estimate(first.draws[name] - second.draws[name], first.groups, first.seed, few) for name in MEASURES}
    lead, needed = by["spearman"], groups_needed(by["spearman"].value, first.n_checkpoints)
    sides = {np.sign(end) for end in (*lead.over_groups, *lead.over_families)}
    if sides not in ({1.0}, {-1.0}):
        verdict = "cannot tell: an interval of the difference contains 0 or is not defined"
    elif lead.n_groups < needed:
        verdict = f"cannot tell: {lead.n_groups} groups of tasks, and a difference of this size needs {needed:.0f}"
    else:
        verdict = "better" if sides == {1.0} else "worse"
    seconds, flops = _ratio(first.seconds, second.seconds), _ratio(first.flops, second.flops)
    return Comparison(first.predictor, second.predictor, by, seconds, flops, verdict)


def standard_error(n_checkpoints: int) -> float:
    """Of one Spearman over checkpoints, about: 1/√(n − 1). NaN for fewer than two."""
    return 1 / np.sqrt(n_checkpoints - 1) if n_checkpoints > 1 else np.nan


def groups_needed(difference: float, n_checkpoints: int) -> float:
    """Groups of tasks by which two predictors whose Spearman differs by `difference` can be told apart at 95 %, where
    their errors on a task correlate by ½, as those of predictors on one test part do about; ∞ for no difference."""
    if difference == 0:
        return np.inf
    needed = (Z * standard_error(n_checkpoints) / difference) ** 2
    return needed if not np.isfinite(needed) else ceil(needed)


def _estimate(
    draws: np.ndarray, groups: Sequence[str], seed: int, few_families: bool, tops: np.ndarray | None = None
) -> Estimate:
    """Of `draws [1 + n_draws, tasks]`, in shares of `tops [tasks]` where there are any: a ratio of means."""
    whole = np.ones(draws.shape[1]) if tops is None else tops
    kept = np.isfinite(draws[0]) & np.isfinite(whole) if draws.shape[1] else np.zeros(0, dtype=bool)
    names, which = np.unique(np.asarray(groups, dtype=object)[kept], return_inverse=True)
    nan = (np.nan, np.nan)
    if not len(names):
        return Estimate(np.nan, nan, nan, 0)
    average = np.zeros((len(names), kept.sum()))
    average[which, np.arange(kept.sum())] = 1
    average /= average.sum(1, keepdims=True)
    values, bases = draws[:, kept] @ average.T, average @ whole[kept]
    drawn = bootstrap_weights(len(names), len(draws) - 1, (seed, 12))
    over_groups = interval((drawn @ values[0]) / (drawn @ bases)) if len(names) > 1 else nan
    shares = values.mean(1) / bases.mean()
    return Estimate(float(shares[0]), over_groups, nan if few_families else interval(shares[1:]), len(names))


def _mean(x: np.ndarray) -> float:
    known = x[np.isfinite(x)]
    return float(known.mean()) if len(known) else np.nan


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else np.nan
