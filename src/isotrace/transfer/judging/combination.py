"""Predictors combined by ridge regression over ranks within tasks, each cell foretold by a fit that has not seen its
group of tasks, its family of checkpoints, or either.

What is left out is hidden before anything is computed: a predictor that is made of outcomes (the mean rank elsewhere)
gets a matrix in which hidden outcomes are NaN, once for every fold.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from isotrace.base.errors import InputError
from isotrace.transfer.judging.matrix import Matrix, ranks

Feature = np.ndarray | Callable[[np.ndarray], np.ndarray]
"""Scores `[checkpoints, tasks]` made without outcomes, or what makes them from outcomes, NaN where hidden."""
Out = Literal["groups", "families", "both"]
STRENGTHS = tuple(10.0 ** np.arange(-4, 3))
"""Of the ridge penalty, in units of the mean weight of a cell."""


def mean_rank_elsewhere(matrix: Matrix) -> Callable[[np.ndarray], np.ndarray]:
    """The baseline that needs no label of the task: the mean, over groups of tasks other than the task's own, of a
    checkpoint's mean rank there. NaN for a checkpoint that was measured nowhere else."""
    groups = np.asarray(matrix.groups)

    def of(y: np.ndarray) -> np.ndarray:
        ranked, names = ranks(y), np.unique(groups)
        means = np.stack([_nanmean(ranked[:, groups == name]) for name in names], 1)
        other = np.stack([_nanmean(means[:, names != name]) for name in names], 1)
        return other[:, np.searchsorted(names, groups)]

    return of


def combined(features: Mapping[str, Feature], matrix: Matrix, out: Out) -> np.ndarray:
    """`[checkpoints, tasks]`: scores of every cell, by a ridge regression of the outcome's rank on the ranks of the
    `features`, fitted without the group of the cell's task (`groups`), the family of its checkpoint, or both of them.

    Groups of tasks weigh alike. The penalty is chosen among STRENGTHS by leaving out what is left out once more. A
    feature without a number stands at the middle rank. Raises InputError for one of another shape, and for fewer than
    three groups or families, which leave nothing to choose by.
    """
    y, groups, families = matrix.y, np.asarray(matrix.groups), np.asarray(matrix.families)
    inner = groups if out != "families" else families
    for names, noun in ((groups, "groups of tasks"), (families, "families of checkpoints")):
        if (noun.startswith(out) or out == "both") and len({*names}) < 3:
            raise InputError(f"{len({*names})} {noun}, and leaving one out needs 3: give more outcomes.")
    found = np.full(y.shape, np.nan)
    for group in np.unique(groups) if out != "families" else [None]:
        for family in np.unique(families) if out != "groups" else [None]:
            columns = np.full(y.shape[1], True) if group is None else groups == group
            rows = np.full(y.shape[0], True) if family is None else families == family
            cells = rows[:, None] & columns
            hidden = (columns & (group is not None)) | (rows[:, None] & (family is not None))
            visible = np.where(hidden, np.nan, y)
            x = _ranked(features, visible)
            weights = _weights(visible, groups)
            held = inner[None, :] if out != "families" else inner[:, None]
            found[cells] = x[cells] @ _fitted(x, visible, weights, np.broadcast_to(held, y.shape))
    return found


def _ranked(features: Mapping[str, Feature], visible: np.ndarray) -> np.ndarray:
    """`[checkpoints, tasks, features]`: ranks within tasks, less ½."""
    made = []
    for name, feature in features.items():
        scores = feature(visible.copy()) if callable(feature) else feature
        if scores.shape != visible.shape:
            raise InputError(f"the predictor {name} has scores {scores.shape}, the outcomes are {visible.shape}.")
        made.append(np.nan_to_num(ranks(scores) - 0.5, nan=0.0))
    return np.stack(made, -1)


def _weights(visible: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Of cells, 0 where hidden: groups weigh alike, their sum is the number of cells."""
    known = np.isfinite(visible).astype(np.float64)
    counts = {name: known[:, groups == name].sum() for name in np.unique(groups)}
    share = known / np.array([max(counts[name], 1.0) for name in groups])
    return share * known.sum() / max(share.sum(), 1.0)


def _fitted(x: np.ndarray, visible: np.ndarray, weights: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """`[features]`. The products of every part are summed once: leaving one out is a subtraction."""
    known = np.isfinite(visible)
    x, target, weights, parts = x[known], (ranks(visible) - 0.5)[known], weights[known], parts[known]
    names = np.unique(parts)
    gram = np.stack([(x[at] * weights[at, None]).T @ x[at] for at in (parts == name for name in names)])
    moment = np.stack([(x[at] * weights[at, None]).T @ target[at] for at in (parts == name for name in names)])
    penalties = [strength * weights.sum() * np.eye(x.shape[1]) for strength in STRENGTHS]
    losses = np.zeros(len(STRENGTHS))
    for i, name in enumerate(names):
        at, rest = parts == name, (gram.sum(0) - gram[i], moment.sum(0) - moment[i])
        for j, penalty in enumerate(penalties):
            error = target[at] - x[at] @ np.linalg.solve(rest[0] + penalty, rest[1])
            losses[j] += weights[at] @ error**2
    return np.linalg.solve(gram.sum(0) + penalties[int(losses.argmin())], moment.sum(0))


def _nanmean(x: np.ndarray) -> np.ndarray:
    """Over columns; NaN where none is known."""
    n = np.isfinite(x).sum(1)
    return np.divide(np.nansum(x, 1), n, out=np.full(len(x), np.nan), where=n > 0)
