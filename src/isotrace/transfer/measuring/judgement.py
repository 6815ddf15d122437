"""Predictors judged by what was measured: each beside the ceiling, the cross-validated probe and what costs nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from isotrace.base.errors import InputError
from isotrace.transfer.judging.abstention import FOREST
from isotrace.transfer.judging.combination import Feature, Out, combined, mean_rank_elsewhere
from isotrace.transfer.judging.judge import Comparison, Judged, Predictor, compare, judge
from isotrace.transfer.judging.matrix import Matrix, matrix_of
from isotrace.transfer.judging.noise import Ceiling, task_ceiling
from isotrace.transfer.measuring.lists import Checkpoint
from isotrace.transfer.measuring.measure import Measured
from isotrace.transfer.measuring.parts import METRIC
from isotrace.transfer.measuring.settings import MeasureSettings
from isotrace.transfer.predictors.scored import scored

PROBE, ELSEWHERE, CONSTANT = "probe", "mean rank elsewhere", "any"
"""What others are compared with; the mean rank on other groups of tasks; a choice at random."""
GOAL = 0.95
"""Share of the ceiling that a better way to choose has to reach."""
FEW = 3
"""Groups of tasks, or families of checkpoints, fewer of which leave nothing to fit a combination on."""


@dataclass(frozen=True, eq=False)
class Judgement:
    """`forest [tasks]`: what the forest on fingerprints reached. `ceilings` by task. `predictors`: with scores
    `[checkpoints, tasks]`, `judged` in the same order; `against`: by name, the comparison with the cross-validated
    probe; empty where that was not asked."""

    matrix: Matrix
    forest: np.ndarray
    ceilings: Mapping[str, Ceiling]
    predictors: tuple[Predictor, ...]
    judged: tuple[Judged, ...]
    against: Mapping[str, Comparison]

    @property
    def best(self) -> Judged | None:
        """Of the largest mean Spearman; None where none has one."""
        known = [one for one in self.judged if np.isfinite(one.means["spearman"].value)]
        return max(known, key=lambda one: one.means["spearman"].value, default=None)


def shortfall(one: Judged, against: Comparison) -> str:
    """Why `one` is not shown to be better than the cross-validated probe, by the rule of docs/transfer.md, which was
    written before any matrix; empty where it is."""
    share, regret = one.means["share"].value, against.by["regret_1"]
    ends = (regret.over_groups[1], regret.over_families[1])
    if against.verdict != "better":
        return against.verdict
    if not share >= GOAL:
        return f"it reaches {share:.2f} of the ceiling, below {GOAL}"
    if not max(ends) < 0:
        return "its regret may be no smaller"
    if not against.times_flops <= 1:
        return f"it takes {against.times_flops:.3g} times the FLOPs"
    return ""


def judgement(
    measured: Sequence[Measured], frame: pl.DataFrame, checkpoints: Sequence[Checkpoint], settings: MeasureSettings,
    split: str, n_draws: int = 1_000,
) -> Judgement:  # fmt: skip
    """`frame`: the table of outcomes. Raises InputError for tasks whose parts are not all named by `split`, and as
    `matrix_of` does."""
    given = {"n_train": settings.n_train, "split": split, "metrics": METRIC}
    named, tasks = {one.name for one in checkpoints}, {one.task: one for one in measured}
    frame = frame.filter(pl.col("task").is_in([*tasks]))
    matrix = matrix_of(frame.filter(pl.col("checkpoint").is_in([*named])), method=settings.method, **given)
    if lacking := {*tasks} - {*matrix.tasks}:
        raise InputError(f"{min(lacking)} has no outcome with parts named by {split!r}: give one column name to all.")
    rows = matrix_of(frame.filter(checkpoint=FOREST), method=FOREST, **given)
    order = [[one.name for one in checkpoints].index(name) for name in matrix.checkpoints]
    ceilings = {
        task: task_ceiling(tasks[task].outputs[order], tasks[task].y, tasks[task].groups, tasks[task].metric,
                           settings.seed, n_draws=n_draws)
        for task in matrix.tasks
    }  # fmt: skip
    predictors = [*(_asked(matrix, tasks, settings) if settings.predictors else ()), *_free(matrix)]
    features: dict[str, Feature] = {one.name: one.scores for one in predictors if one.name not in (ELSEWHERE, CONSTANT)}
    features |= {ELSEWHERE: mean_rank_elsewhere(matrix)}
    costs = [np.nansum([one.seconds for one in predictors], 0), np.nansum([one.flops for one in predictors], 0)]
    ways: tuple[tuple[Out, Sequence[str], str], ...] = (
        ("groups", matrix.groups, "group"), ("families", matrix.families, "family")
    )  # fmt: skip
    for out, names, one in ways:
        if len({*names}) >= FEW:
            predictors.append(Predictor(f"all, without the {one}", combined(features, matrix, out), *costs))
    judged = tuple(judge(one, matrix, ceilings, seed=settings.seed, n_draws=n_draws) for one in predictors)
    probe = next((one for one in judged if one.predictor == PROBE), None)
    against = {} if probe is None else {one.predictor: compare(one, probe) for one in judged if one is not probe}
    forest = rows.y[0, [rows.tasks.index(task) for task in matrix.tasks]]
    return Judgement(matrix, forest, ceilings, tuple(predictors), judged, against)


def _asked(matrix: Matrix, tasks: Mapping[str, Measured], settings: MeasureSettings) -> list[Predictor]:
    """Means over seeds."""
    cells = [(c, t) for c in matrix.checkpoints for t in matrix.tasks]
    by_seed = [scored({(c, t): tasks[t].scores[c, seed] for c, t in cells}, matrix) for seed in settings.seeds]
    found = []
    for name in settings.predictors:
        own = [one[name] for one in by_seed]
        means = (np.mean([getattr(one, of) for one in own], 0) for of in ("scores", "seconds", "flops"))
        found.append(Predictor(name, *means))
    return found


def _free(matrix: Matrix) -> list[Predictor]:
    nothing = np.zeros(matrix.y.shape)
    elsewhere = mean_rank_elsewhere(matrix)(matrix.y)
    return [Predictor(ELSEWHERE, elsewhere, nothing, nothing), Predictor(CONSTANT, nothing, nothing, nothing)]
