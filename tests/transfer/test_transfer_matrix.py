"""Outcomes as a matrix: means over seeds, ranks, z and gains, by hand."""

from dataclasses import asdict, replace

import numpy as np
import polars as pl
import pytest
from test_outcomes import ROW

from isotrace.base.errors import InputError
from isotrace.transfer.judging.matrix import gain, matrix_of, ranks, z_scores

METRICS = {"class": "auroc", "regression": "r2"}
HOW = {"n_train": 300, "split": "scaffold", "metrics": METRICS}


def table(*rows):
    """(checkpoint, task, method, seed, value) of each."""
    esol = {"kind": "regression", "metric": "r2"}
    return pl.DataFrame(
        asdict(
            replace(ROW, checkpoint=c, family=c[0], task=t, method=m, seed=s, value=v, **(esol if t == "esol" else {}))
        )
        for c, t, m, s, v in rows
    )


FRAME = table(
    ("a1", "esol", "probe", 0, 0.5), ("a1", "esol", "probe", 1, 0.7), ("a1", "tox21/x", "probe", 0, 0.8),
    ("b1", "esol", "probe", 0, 0.2), ("a1", "esol", "scratch", 0, 0.1), ("b1", "esol", "scratch", 0, 0.3),
    ("forest", "esol", "forest", 0, 0.4), ("forest", "tox21/x", "forest", 0, 0.9),
)  # fmt: skip


def test_means_over_seeds():
    found = matrix_of(FRAME, method="probe", **HOW)
    assert (found.checkpoints, found.families) == (("a1", "b1"), ("a", "b"))
    assert (found.tasks, found.groups) == (("esol", "tox21/x"), ("esol", "tox21"))
    assert found.y == pytest.approx(np.array([[0.6, 0.8], [0.2, np.nan]]), nan_ok=True)
    assert found.n_seeds.tolist() == [[2, 1], [1, 0]]
    assert found.seconds[0, 0] == ROW.seconds


def test_gains_over_what_is_beside():
    probe, scratch, forest = (matrix_of(FRAME, method=method, **HOW) for method in ("probe", "scratch", "forest"))
    own = gain(probe, scratch, {"a1": "a1", "b1": "b1"})
    assert own == pytest.approx(np.array([[0.5, np.nan], [-0.1, np.nan]]), nan_ok=True)
    over = gain(probe, forest, dict.fromkeys(probe.checkpoints, "forest"))
    assert over == pytest.approx(np.array([[0.2, -0.1], [-0.2, np.nan]]), nan_ok=True)
    with pytest.raises(InputError, match="no reference of b1"):
        gain(probe, scratch, {"a1": "a1", "b1": "b2"})


def test_ranks_by_hand():
    y = np.array([[3.0, 1.0, np.nan, 1.0], [1.0, 1.0, np.nan, np.nan], [2.0, 0.0, 5.0, 2.0]])
    expected = [[1, 0.75, np.nan, 0], [0, 0.75, np.nan, np.nan], [0.5, 0, 0.5, 1]]
    assert ranks(y) == pytest.approx(np.array(expected), nan_ok=True)


def test_z_by_hand():
    y = np.array([[1.0, 0.1, 4.0], [2.0, 0.1, np.nan], [3.0, 0.1, np.nan]])
    expected = np.array([[0.5, np.nan, np.nan], [1.5, np.nan, np.nan], [2.5, np.nan, np.nan]])
    assert z_scores(y, np.array([0.5, 0.0, 0.0])) == pytest.approx(expected, nan_ok=True)


def test_odd_tables_are_refused():
    with pytest.raises(InputError, match="no outcome of lora"):
        matrix_of(FRAME, method="lora", **HOW)
    with pytest.raises(InputError, match="no metric for tasks of the kind regression"):
        matrix_of(FRAME, method="probe", **HOW | {"metrics": {"class": "auroc"}})
    with pytest.raises(InputError, match="rmse is no metric to choose by"):
        matrix_of(FRAME, method="probe", **HOW | {"metrics": {"class": "auroc", "regression": "rmse"}})
    two = FRAME.with_columns(family=pl.Series(["a"] + ["z"] * 7))
    with pytest.raises(InputError, match="the checkpoint a1 has more than one family"):
        matrix_of(two, method="probe", **HOW)
