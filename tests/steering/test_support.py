"""Maps that act only where they were fitted: inside the range of the source, coordinate by coordinate."""

from dataclasses import replace

import planted
import pytest
import torch

from isotrace.base.errors import InputError
from isotrace.interventions import Affine, Plan, Residuals, Tokens
from isotrace.steering import Edits
from isotrace.steering.directions.direction import DIRECTIONS
from isotrace.steering.directions.maps.linear_transport import quantiles
from isotrace.steering.states import pooled
from tiny_edits import one_of

SITE = "layers.0.resid_post"


def states(subject, batch, plan=None):
    return subject.run(batch, plan=plan, capture=[SITE]).captured[SITE]


@pytest.fixture
def batch(rotary):
    return rotary.tokenize(["CCO", "c1cc[nH]c1"])


@pytest.fixture
def ranged(rotary, batch):
    """Between the quartiles of what flows."""
    h = states(rotary, batch)[batch.mask]
    low, high = h.quantile(torch.tensor([0.25, 0.75]), 0)
    return replace(one_of("affine", rotary), low=low, high=high)


def test_inside_it_is_the_affine_edit_and_outside_nothing(rotary, batch, ranged):
    h = states(rotary, batch)
    free = states(rotary, batch, replace(ranged, low=None, high=None).plan(0.7))
    found = states(rotary, batch, ranged.plan(0.7))
    inside = (h >= ranged.low[0]) & (h <= ranged.high[0]) & (batch.mask & ~rotary.special(batch.ids))[..., None]
    assert 50 < int(inside.sum()) < h[batch.mask].numel() - 50
    assert torch.equal(found[inside], free[inside])
    assert torch.equal(found[~inside], h[~inside])
    assert torch.equal(rotary.run(batch, plan=ranged.plan(0.0)).logits, rotary.run(batch).logits)


def test_it_is_saved_and_read_and_its_twin_keeps_every_range(rotary, batch, ranged, tmp_path):
    edits = Edits((ranged,)).at(Tokens("last"))
    again = Edits.load(edits.save(tmp_path / "edits", rotary), rotary)
    plan = Plan.load(edits.plan(0.7).save(tmp_path / "plan"))
    wanted = rotary.run(batch, plan=edits.plan(0.7)).logits
    assert not torch.equal(wanted, rotary.run(batch).logits)
    assert torch.equal(rotary.run(batch, plan=again.plan(0.7)).logits, wanted)
    assert torch.equal(rotary.run(batch, plan=plan).logits, wanted)
    twin = edits.twin(1).edits[0]
    assert torch.equal(twin.low, ranged.low)
    assert torch.equal(twin.high, ranged.high)
    assert not torch.equal(twin.scale, ranged.scale)


def test_what_is_no_range_is_refused(ranged):
    with pytest.raises(InputError, match="two ends"):
        replace(ranged, high=None)
    with pytest.raises(InputError, match="ends below where it begins"):
        replace(ranged, high=ranged.low - 1)
    with pytest.raises(InputError, match="NaN or infinity"):
        replace(ranged, high=ranged.high * torch.inf)
    assert quantiles("0.05, 0.95") == quantiles((0.05, 0.95)) == (0.05, 0.95)
    for wrong in ("0", "0.9,0.1", "a,b", (0.0, 1.5), 3):
        with pytest.raises(InputError, match="no range of quantiles"):
            quantiles(wrong)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    subject = planted.subject_of(tmp_path_factory.mktemp("planted"))[0]
    return subject, planted.contrast_of(subject)


def test_transport_acts_where_its_source_lay(world):
    """The ends are quantiles of the source, in the second layer of the source as it is mapped; in the source itself
    nothing lies beyond the smallest and the largest, so that the maps are those without support."""
    subject, contrast = world
    fit = DIRECTIONS["linear_transport"].fit
    given = {"components": Residuals(), "layers": (0, 1), "how": "last"}
    plain, whole, narrow = (fit(subject, contrast, **given, support=s) for s in (None, "0,1", (0.2, 0.8)))
    source = [contrast.examples[i] for i in contrast.negative]
    for made, ends in ((whole, (0.0, 1.0)), (narrow, (0.2, 0.8))):
        for number, edit in enumerate(made.edits):
            plan = Plan.of(*(one.plan(1.0) for one in made.edits[:number]))
            x = pooled(subject, source, Residuals(), (number,), "last", plan=plan)[number]
            for q, end in zip(ends, (edit.low, edit.high), strict=True):
                torch.testing.assert_close(end[0], x.quantile(q, 0).float())
    assert plain.edits[0].low is None
    assert torch.equal(plain.edits[0].scale, whole.edits[0].scale)
    assert whole.settings["support"] == "0,1"
    # beyond the range nothing moves: sequences of the other side, whose N writes what no source has
    a, b = (pooled(subject, contrast.examples, Residuals(), (0,), "last", plan=e.plan(1.0))[0] for e in (plain, whole))
    h = pooled(subject, contrast.examples, Residuals(), (0,), "last")[0].float()
    inside = (h >= whole.edits[0].low) & (h <= whole.edits[0].high)
    assert inside[contrast.negative].double().mean() > 0.98  # but for the rounding of quantiles
    assert not inside.all()
    torch.testing.assert_close(a[inside], b[inside])
    torch.testing.assert_close(b[~inside], h[~inside].double())


def test_the_plan_of_a_support_says_so():
    one = Affine(torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]))
    values = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1])[:, None]
    assert one.new(0, values)[:, 0].tolist() == pytest.approx([-0.1, 1.0, 2.0, 3.0, 1.1])
