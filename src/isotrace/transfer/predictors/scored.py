"""Rows of many checkpoints and tasks as the predictors that `judging.judge` takes."""

from collections.abc import Mapping, Sequence

import numpy as np

from isotrace.base.errors import InputError
from isotrace.transfer.judging.judge import Predictor
from isotrace.transfer.judging.matrix import Matrix
from isotrace.transfer.predictors.predictor import Row


def scored(rows: Mapping[tuple[str, str], Sequence[Row]], matrix: Matrix) -> dict[str, Predictor]:
    """By name; `rows`: (checkpoint, task) → what `score_all` gave. Scores are turned so that the larger is the better;
    what was not scored is NaN.

    Raises InputError for a checkpoint or task that has no outcome.
    """
    shape, found = matrix.y.shape, dict[str, Predictor]()
    for (checkpoint, task), here in rows.items():
        if checkpoint not in matrix.checkpoints or task not in matrix.tasks:
            raise InputError(f"{checkpoint} on {task} has scores and no place among the outcomes: leave it out.")
        at = matrix.checkpoints.index(checkpoint), matrix.tasks.index(task)
        for row in here:
            one = found.setdefault(row.predictor, Predictor(row.predictor, *(np.full(shape, np.nan) for _ in range(3))))
            one.scores[at], one.seconds[at], one.flops[at] = row.direction * row.score, row.seconds, row.flops
    return found
