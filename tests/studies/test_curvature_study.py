"""The study of curvature keeps what it has measured."""

import pytest
import torch

from isotrace.base.progress import silent
from isotrace.base.work import Memo, claimed
from isotrace.studies.curvature import SIZES, measured, notes, seen
from isotrace.studies.study import Setting
from isotrace.transfer.curvature import MEASURES, loss_of

PLAN = {"eigenvalues": {"largest": 1, "smallest": 0}, "trace": {"draws": 4}, "plane": {"points": 3}}


def test_what_was_measured_is_not_measured_again(tmp_path):
    calls = []

    def square(theta):
        calls.append(1)
        return theta @ theta

    loss = loss_of(square, torch.ones(5, 6))
    setting = Setting(True, tmp_path, 0, silent, {})
    with claimed(tmp_path / "work") as work:
        rows = measured(loss, PLAN, None, setting, Memo(work, loss.name))
        before = len(calls)
        assert measured(loss, PLAN, None, setting, Memo(work, loss.name)) == rows
        assert len(calls) == before
    by = {row["quantity"]: row["value"] for row in rows}
    assert by["lambda_1"] == pytest.approx(2, rel=1e-5)
    assert by["trace"] == pytest.approx(60, rel=1e-5)
    assert by["lambda_1_over_trace"] == pytest.approx(1 / 30, rel=1e-5)
    assert {*by} > {"plane_mean_rise", "trace_per_parameter"}


def test_the_full_study_takes_every_measure_and_the_quick_one_known_settings():
    assert set(SIZES[False].masked) == set(MEASURES)
    assert set(SIZES[True].masked) | set(SIZES[True].task) <= set(MEASURES)


def test_what_a_reader_must_know_is_noted():
    row = {"loss": "masked", "quantity": "lambda_1", "reason": "not converged"}
    assert "masked: lambda_1: not converged." in notes([row, row | {"reason": ""}], SIZES[True])
    assert notes([row], SIZES[True])[0].startswith("16 molecules")


def test_molecules_are_those_the_subject_has_seen():
    table = seen("esol", 16)
    assert table.height == 16
    assert set(table["split_scaffold"]) == {"train"}
