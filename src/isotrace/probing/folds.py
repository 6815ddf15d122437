"""Which rows a probe is fitted on, which choose its penalty, and which it is judged on: whole groups each."""

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from isotrace.base.errors import InputError
from isotrace.datasets.tasks import Labelled, parts_named
from isotrace.probing.linear import Task

Folds = list[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""(fit, valid, test): rows."""


def folds_of(task: Task, y: np.ndarray, groups: np.ndarray, classes: Sequence[str], n_folds: int, seed: int) -> Folds:
    """Each fold is the test part once, and chooses for that before it."""
    n = min(n_folds, len(np.unique(groups)))
    if n < 3:
        raise InputError(
            f"the sequences form {len(np.unique(groups))} groups of relatives, and a probe holds out whole ones: give "
            "more diverse sequences, or name a column of other groups with --group."
        )
    kind = GroupKFold if task == "regression" else StratifiedGroupKFold
    parts = [test for _, test in kind(n, shuffle=True, random_state=seed).split(y[:, None], y, groups)]
    folds = []
    for i in range(n):
        test, valid = parts[i], parts[(i + 1) % n]
        fit = np.concatenate([p for j, p in enumerate(parts) if j not in (i, (i + 1) % n)])
        folds.append((np.sort(fit), valid, test))
    if task == "classification":
        for fit, *_ in folds:
            for k in set(np.unique(y)) - set(np.unique(y[fit])):
                name = classes[int(k)] if classes else f"{k:g}"
                raise InputError(f"class {name!r} stands in too few groups to be held out: drop it or join classes.")
    return folds


def folds_named(data: Labelled, split: str, seed: int) -> Folds:
    parts = np.asarray(parts_named(data, split, seed))
    parts = np.repeat(parts, [np.size(e.y) for e in data.examples])
    found = tuple(np.flatnonzero(parts == part) for part in ("fit", "discover", "report"))
    if empty := next(
        (name for rows, name in zip(found, ("train", "valid", "test"), strict=True) if not len(rows)), None
    ):
        raise InputError(f"column {split!r} leaves the part {empty!r} empty: name train, valid and test.")
    fit, valid, test = found
    return [(fit, valid, test)]
