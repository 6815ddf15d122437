"""Outcomes as a matrix, checkpoints × tasks, and what makes tasks comparable: ranks, z and gains."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.stats import rankdata

from isotrace.base.errors import InputError
from isotrace.transfer.judging.outcomes import task_group

RISING = ("auroc", "macro_auroc", "auprc", "balanced_accuracy", "accuracy", "r2", "spearman")
"""Metrics of which more is better."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """`y [checkpoints, tasks]` float64: mean over seeds of the test metric, NaN where it was not measured. `n_seeds`
    int64, `seconds`, `flops` likewise, the latter means over seeds. `families` of checkpoints, `groups` of tasks."""

    checkpoints: tuple[str, ...]
    families: tuple[str, ...]
    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    y: np.ndarray
    n_seeds: np.ndarray
    seconds: np.ndarray
    flops: np.ndarray


def matrix_of(frame: pl.DataFrame, *, method: str, n_train: int, split: str, metrics: Mapping[str, str]) -> Matrix:
    """Of the rows of a table of outcomes; `metrics`: the metric that stands for a task, by its kind.

    Raises InputError where no row fits, for a kind without a metric, a metric of which less is better, a checkpoint of
    two families and a task of two kinds.
    """
    for metric in metrics.values():
        if metric not in RISING:
            raise InputError(f"{metric} is no metric to choose by: give one of which more is better ({RISING}).")
    rows = frame.filter(method=method, n_train=n_train, split=split)
    if missing := {*rows["kind"]} - {*metrics}:
        raise InputError(f"no metric for tasks of the kind {min(missing)}: name one.")
    rows = rows.filter(pl.col("metric") == pl.col("kind").replace_strict(metrics, return_dtype=pl.String))
    if rows.is_empty():
        raise InputError(f"no outcome of {method} with {n_train} labels, split {split}, in {[*metrics.values()]}.")
    family, kind = (_only(rows, one, of) for one, of in (("checkpoint", "family"), ("task", "kind")))
    cells = rows.group_by("checkpoint", "task").agg(
        pl.col("value", "seconds", "flops").mean(), pl.col("seed").n_unique().alias("n_seeds")
    )
    checkpoints, tasks = sorted(family), sorted(kind)
    at = [checkpoints.index(name) for name in cells["checkpoint"]], [tasks.index(name) for name in cells["task"]]

    def filled(column: str, empty: float) -> np.ndarray:
        array = np.full((len(checkpoints), len(tasks)), empty)
        array[at] = cells[column].to_numpy()
        return array

    return Matrix(
        tuple(checkpoints), tuple(family[name] for name in checkpoints), tuple(tasks),
        tuple(task_group(task) for task in tasks), filled("value", np.nan), filled("n_seeds", 0).astype(np.int64),
        filled("seconds", np.nan), filled("flops", np.nan),
    )  # fmt: skip


def _only(rows: pl.DataFrame, one: str, of: str) -> dict[str, str]:
    pairs = rows.select(one, of).unique()
    found = dict(pairs.iter_rows())
    if len(found) < pairs.height:
        name = next(name for name, n in pairs[one].value_counts().iter_rows() if n > 1)
        raise InputError(f"the {one} {name} has more than one {of}: give each its own name.")
    return found


def ranks(y: np.ndarray) -> np.ndarray:
    """Rank over checkpoints, of every column of `y [checkpoints, tasks]`: 0 the worst of those known, 1 the best, ties
    at their mean; ½ for one alone, NaN where `y` is."""
    n = np.isfinite(y).sum(0)
    ranked = rankdata(np.where(np.isfinite(y), y, np.nan), axis=0, nan_policy="omit") - 1
    return np.where(n > 1, ranked / np.maximum(n - 1, 1), np.where(np.isfinite(y), 0.5, np.nan))


def z_scores(y: np.ndarray, forest: np.ndarray) -> np.ndarray:
    """(y − y_forest)/sd over checkpoints, `[checkpoints, tasks]`; `forest [tasks]`. NaN where y is and for tasks on
    which all checkpoints known are equal, or one alone is."""
    n = np.isfinite(y).sum(0)
    mean = np.divide(np.nansum(y, 0), n, out=np.full(y.shape[1], np.nan), where=n > 0)
    spread = np.sqrt(np.divide(np.nansum((y - mean) ** 2, 0), n - 1, out=np.full(y.shape[1], np.nan), where=n > 1))
    noise = 1e-12 * np.nanmax(np.abs(y), axis=0, initial=0)  # equal numbers less their mean are rounding errors
    return (y - forest) / np.where(spread > noise, spread, np.nan)


def gain(matrix: Matrix, reference: Matrix, of: Mapping[str, str]) -> np.ndarray:
    """`[checkpoints, tasks]`: y less that of the row `of[checkpoint]` in `reference`, in units of the metric. NaN where
    either is unknown.

    of: a checkpoint's own name for `scratch`, which has its size; the untrained copy's for its probe; the forest's for
    all. Raises InputError for a checkpoint without one.
    """
    rows = dict(zip(reference.checkpoints, reference.y, strict=True))
    if missing := next((name for name in matrix.checkpoints if of.get(name) not in rows), None):
        raise InputError(f"no reference of {missing} ({of.get(missing)}): compute it, or leave the checkpoint out.")
    column = {task: j for j, task in enumerate(reference.tasks)}
    beside = [
        [rows[of[name]][column[t]] if t in column else np.nan for t in matrix.tasks] for name in matrix.checkpoints
    ]
    return matrix.y - np.asarray(beside)
