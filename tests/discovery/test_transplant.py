"""A head that is weakened for one token does its work again where it is made to attend as it does for the others."""

from typing import Any

import pytest
import torch

from isotrace.base.errors import InputError
from isotrace.discovery.transplant import transplant
from isotrace.studies.worlds.planted_subjects import copy
from isotrace.studies.worlds.planted_weights import LENGTH


@pytest.fixture(scope="module")
def weak(tmp_path_factory):
    """The copying subject, whose induction head hardly matches P any more."""
    planted = copy(tmp_path_factory.mktemp("weak"), 64, 0)
    model: Any = planted.subject.model
    with torch.no_grad():
        model.esm.encoder.layer[1].attention.self.query.weight["CNOSPFIB".index("P")] *= 0.01
    return planted


def behind_the_first(batch):
    """Where copying looks: from the last token, at what stands behind its first occurrence."""
    wanted = torch.full_like(batch.ids, -1)
    wanted[:, -2] = (batch.ids[:, :-2] == batch.ids[:, -2:-1]).int().argmax(1) + 1
    return wanted


def test_the_head_is_repaired_and_others_are_not(weak):
    batch = weak.clean
    found = transplant(weak.subject, [(1, 0)], batch, weak.metric, behind_the_first(batch), seed=0)
    fails = [text.endswith("P") for text in batch.sequences]
    assert 4 <= sum(fails) <= 32
    for before, after, failed in zip(found.before, found.after, fails, strict=True):
        assert (before < LENGTH / 2) == failed
        assert after == pytest.approx(LENGTH, abs=0.1)
    row = found.row(0)
    assert row["gain_ci"][0] > 0 < row["over_random_ci"][0]
    assert abs(row["random"]) < 0.05 * row["gain"]
    assert row["p"] == pytest.approx(1 / 21)


def test_to_look_elsewhere_repairs_nothing(weak):
    batch = weak.clean
    wanted = behind_the_first(batch)
    found = transplant(weak.subject, [(1, 0)], batch, weak.metric, torch.where(wanted < 0, wanted, 0), seed=0)
    assert found.row(0)["gain"] < 0
    alone = transplant(weak.subject, [(1, 0)], batch, weak.metric, torch.full_like(wanted, -1), seed=0, n_random=1)
    assert alone.after.tolist() == pytest.approx(alone.before.tolist(), abs=1e-6)


def test_heads_that_are_not_there_are_named(weak):
    wanted = behind_the_first(weak.clean)
    for heads, why in (([(1, 9)], "no head 1.9"), ([(1, h) for h in range(3)], "too few"), ([], "no heads")):
        with pytest.raises(InputError, match=why):
            transplant(weak.subject, heads, weak.clean, weak.metric, wanted, seed=0)
    with pytest.raises(InputError, match="a place of the sequence"):
        transplant(weak.subject, [(1, 0)], weak.clean, weak.metric, wanted + 99, seed=0)
