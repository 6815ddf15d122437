"""Directions that are set instead of added: to a quantile of what they are over the positive side."""

import numpy as np
import planted
import pytest
import torch

from isotrace.base.errors import InputError
from isotrace.interventions import MLPs, Neurons, Residuals
from isotrace.steering import AddEdit, Edits, SetEdit
from isotrace.steering.directions.direction import DIRECTIONS
from isotrace.steering.states import pooled

CASES = {
    "difference_in_means": {"form": "paired", "how": "last"},
    "control_vector": {},
    "regime_delta": {"mode": "pooled"},
    "probe": {"strength": 1.0},
    "gradient": {"strength": 1.0},
    "snmf": {"components": Neurons(), "k": 3, "restarts": 1, "iterations": 20},
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    subject, weights, _ = planted.subject_of(tmp_path_factory.mktemp("planted"))
    return subject, weights, planted.contrast_of(subject)


@pytest.mark.parametrize("name", CASES)
def test_a_direction_is_set_to_its_quantile_over_the_positive_side(world, name):
    subject, _, contrast = world
    given = {"components": MLPs(), "layers": (0,)} | CASES[name]
    (added,) = DIRECTIONS[name].fit(subject, contrast, **given, kind="add").edits
    edits = DIRECTIONS[name].fit(subject, contrast, **given, kind="set", quantile=0.8)
    (edit,) = edits.edits
    assert isinstance(added, AddEdit)
    assert isinstance(edit, SetEdit)
    assert torch.equal(edit.direction, added.direction)
    assert (edit.components, edit.layer, edit.where) == (added.components, added.layer, added.where)
    assert (edits.settings["kind"], edits.settings["quantile"]) == ("set", 0.8)
    how = given.get("how", "mean")
    x = pooled(subject, contrast.examples, edit.components, (0,), how)[0].numpy()
    along = x[contrast.side > 0] @ edit.direction.flatten().double().numpy()
    assert edit.target == pytest.approx(np.quantile(along, 0.8), rel=1e-6, abs=1e-9)
    np.testing.assert_allclose(edit.mean.flatten(), x.mean(0), rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_every_token_is_where_it_was_set_and_its_twin_as_far_from_its_mean(world, tmp_path):
    """In the first MLP, whose tokens N alone write the planted direction."""
    subject, weights, contrast = world
    site, wanted = "layers.0.mlp_out", (weights["a"] - weights["other"]).float()
    edits = DIRECTIONS["difference_in_means"].fit(
        subject, contrast, components=MLPs(), layers=(0,), kind="set", quantile=1.0
    )
    (edit,), batch = edits.edits, subject.tokenize(["CCCOC"])
    assert abs(float(edit.direction[0] @ wanted / wanted.norm())) > 0.99
    plain, half, whole = (
        subject.run(batch, plan=edits.plan(alpha), capture=[site]).captured[site][0, 1:-1] @ edit.direction[0]
        for alpha in (0, 0.5, 1)
    )
    torch.testing.assert_close(whole, torch.full_like(whole, edit.target))
    torch.testing.assert_close(half, (plain + edit.target) / 2)
    assert edit.target > float(plain.max())
    twin = edits.twin(0).edits[0]
    away = [e.target - float((e.mean * e.direction).sum()) for e in (edit, twin)]
    assert away[0] == pytest.approx(away[1], rel=1e-4)
    again = Edits.load(edits.save(tmp_path / "edits", subject), subject)
    assert torch.equal(subject.run(batch, plan=again.plan(0.5)).logits, subject.run(batch, plan=edits.plan(0.5)).logits)


def test_order_of_edits_stays(world):
    subject, _, contrast = world
    edits = DIRECTIONS["control_vector"].fit(subject, contrast, layers=(0, 1), kind="set")
    assert [e.layer for e in edits.edits] == [0, 1]
    assert edits.settings["quantile"] == 0.5


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("linear_transport", {"kind": "set"}, "gives edits of kind affine here, not one direction to set"),
        ("linear_transport", {"kind": "add"}, "not one direction to add"),
        ("regime_delta", {"kind": "set", "mode": "padded"}, "a direction for every position here"),
        ("difference_in_means", {"kind": "set", "quantile": 1.5}, "a number from 0 to 1"),
        ("difference_in_means", {"quantile": 0.5}, "give kind=set and a quantile"),
        ("difference_in_means", {"kind": "remove"}, "give kind=set and a quantile"),
    ],
)
def test_what_is_no_one_direction_is_refused(world, name, settings, message):
    subject, _, contrast = world
    with pytest.raises(InputError, match=message):
        DIRECTIONS[name].fit(subject, contrast, components=Residuals(), layers=(0,), **settings)
