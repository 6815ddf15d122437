"""Gradient distance between tasks: which other tasks' outcomes speak for a new task of the same checkpoint."""

from collections.abc import Callable, Sequence

import numpy as np

from isotrace.base.errors import InputError
from isotrace.transfer.judging.matrix import Matrix, z_scores
from isotrace.transfer.predictors.gradients.gradient import TaskGradient, distance


def distances(gradients: Sequence[TaskGradient]) -> np.ndarray:
    """`[tasks, tasks]`, of one checkpoint."""
    return np.asarray([[distance(one, other) for other in gradients] for one in gradients])


def near_elsewhere(matrix: Matrix, between: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A predictor made of outcomes, see `judging.combination.Feature`: the mean over the other tasks u of
    (1 − d(u, t)/2) · z(c, u), z in standard deviations over checkpoints. `between [checkpoints, tasks, tasks]`.

    Tasks of the own group do not count; NaN for a checkpoint that was measured nowhere else. Raises InputError for
    distances of another shape.
    """
    groups, n_tasks = np.asarray(matrix.groups), len(matrix.tasks)
    if between.shape != (len(matrix.checkpoints), n_tasks, n_tasks):
        raise InputError(f"distances {between.shape} of outcomes {matrix.y.shape}: give one of each pair of tasks.")
    other = groups[:, None] != groups

    def of(y: np.ndarray) -> np.ndarray:
        known = np.isfinite(y)
        mean = np.divide(np.nansum(y, 0), known.sum(0), out=np.full(n_tasks, np.nan), where=known.any(0))
        z = z_scores(y, mean)
        terms = (1 - between / 2) * z[:, :, None]  # [checkpoints, u, t]
        counts = np.isfinite(terms) & other
        total = np.where(counts, terms, 0).sum(1)
        return np.divide(total, counts.sum(1), out=np.full(y.shape, np.nan), where=counts.any(1))

    return of
