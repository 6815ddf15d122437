"""The table of outcomes: its columns, what it refuses, and that a killed computation goes on."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import asdict, fields, replace

import polars as pl
import pytest

from isotrace.base.errors import InputError, RunError
from isotrace.transfer.judging.outcomes import OutcomeRow, opened, read_outcomes, task_group

ROW = OutcomeRow(
    "molm@500", "molm", 2_760_000, 1e9, 0.41, "tox21/NR-AR", "class", 300, "scaffold", "probe", 0, "auroc", 0.7,
    0.6, 0.8, 1.5, 1e9,
)  # fmt: skip
COLUMNS = (
    "checkpoint, family, params, tokens_seen, pretrain_loss, task, kind, n_train, split, method, seed, metric, value, "
    "value_ci_low, value_ci_high, seconds, flops"
)


def never():
    raise AssertionError("computed again")


def test_rows_have_the_columns_of_the_methods():
    assert ", ".join(field.name for field in fields(OutcomeRow)) == COLUMNS
    assert (task_group("tox21/NR-AR"), task_group("esol")) == ("tox21", "esol")


def test_rows_are_stored_once_and_read_again(tmp_path):
    other = replace(ROW, metric="auprc", value=math.nan)
    with opened(tmp_path) as table:
        assert table.computed(["probe", 0], lambda: [ROW, other]) == [ROW, other]
        assert table.computed(["probe", 0], never)[0] == ROW
    with opened(tmp_path) as table:
        found = table.computed(["probe", 0], never)
        table.computed(["probe", 1], lambda: [replace(ROW, seed=1)])
    assert found[0] == ROW
    assert math.isnan(found[1].value)
    frame = read_outcomes(tmp_path)
    assert ", ".join(frame.columns) == COLUMNS
    assert frame["seed"].to_list() == [0, 0, 1]
    assert frame.row(0, named=True) == asdict(ROW)


def test_the_same_outcome_of_other_settings_is_refused(tmp_path):
    with opened(tmp_path) as table:
        table.computed({"lr": 1e-3}, lambda: [ROW])
        with pytest.raises(InputError, match="want a table of their own"):
            table.computed({"lr": 1e-4}, lambda: [replace(ROW, value=0.9)])
        with pytest.raises(InputError, match="already"):
            table.computed({"lr": 1e-5}, lambda: [replace(ROW, seed=7)] * 2)
        with pytest.raises(InputError, match="no outcome"):
            table.computed({"lr": 1e-6}, list)
        assert table.frame.height == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": 1}, "no float"),
        ({"seed": 0.0}, "no int"),
        ({"params": True}, "no int"),
        ({"task": ""}, "without a task"),
        ({"seconds": -1.0}, "negative"),
        ({"value_ci_low": 0.9}, "ends below"),
    ],
)
def test_odd_values_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        replace(ROW, **change)


def test_other_columns_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"holds no outcomes\.parquet"):
        read_outcomes(tmp_path)
    with opened(tmp_path) as table:
        table.computed(0, lambda: [ROW])
    kept = pl.read_parquet(tmp_path / "outcomes.parquet")
    kept.with_columns(luck=pl.lit(1)).write_parquet(tmp_path / "outcomes.parquet")
    for read in (read_outcomes, lambda folder: opened(folder).__enter__()):
        with pytest.raises(RunError, match=r"columns: luck"):
            read(tmp_path)
    kept.with_columns(pl.col("seed").cast(pl.Int32)).write_parquet(tmp_path / "outcomes.parquet")
    with pytest.raises(RunError, match=r"columns: seed"):
        read_outcomes(tmp_path)
    (tmp_path / "outcomes.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(RunError, match="cannot be read"):
        read_outcomes(tmp_path)


def test_one_process_at_a_time(tmp_path):
    with opened(tmp_path), pytest.raises(RunError, match="in use by"):
        opened(tmp_path).__enter__()


KILLED = """
import os, signal, sys
from dataclasses import replace
sys.path.insert(0, sys.argv[2])
from test_outcomes import ROW, opened

with opened(sys.argv[1]) as table:
    for seed in range(3):
        table.computed(seed, lambda: [replace(ROW, seed=seed)])
    table.computed(3, lambda: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_a_killed_computation_goes_on(tmp_path):
    arguments = [sys.executable, "-c", KILLED, str(tmp_path), os.path.dirname(__file__)]
    assert subprocess.run(arguments).returncode == -signal.SIGKILL
    asked = []
    with opened(tmp_path) as table:
        for seed in range(5):
            table.computed(seed, lambda seed=seed: asked.append(seed) or [replace(ROW, seed=seed)])
    assert asked == [3, 4]
    assert read_outcomes(tmp_path)["seed"].to_list() == [0, 1, 2, 3, 4]
