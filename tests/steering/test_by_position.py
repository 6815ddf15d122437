"""Differences in means that are resolved by position: found where the mean over tokens is null."""

import planted
import pytest
import torch

from isotrace.base.errors import InputError
from isotrace.interventions import MLPs, Residuals
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions.direction import DIRECTIONS
from isotrace.steering.edits import Edits

PLACES = (2, 4)
"""Where N and O stand, or O and N: behind <cls>."""
AT = {"components": MLPs(), "layers": (0,)}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Either side holds the same tokens; the positive one has N before O, the negative one O before N."""
    subject, weights, _ = planted.subject_of(tmp_path_factory.mktemp("planted"))
    backgrounds = ["CCCC", "CSCC", "SCCS", "CCSC"]
    texts = [f"{b[0]}{x}{b[1]}{y}{b[2:]}" for b in backgrounds for x, y in ("NO", "ON")]
    contrast = Contrast.of(subject, texts, ["b", "a"] * 4, groups=[f"g{i // 2}" for i in range(8)])
    return subject, (weights["a"] - weights["other"]).double(), contrast


def fitted(subject, contrast, **settings):
    return DIRECTIONS["difference_in_means"].fit(subject, contrast, **AT | settings)


@pytest.mark.parametrize("form", ["plain", "paired", "grouped"])
def test_what_is_null_in_the_mean_is_found_by_position(world, form):
    subject, wanted, contrast = world
    found = fitted(subject, contrast, form=form, by="position")
    direction = found.edits[0].direction[:, 0].double()
    assert direction.shape == (8, len(wanted))
    sizes = direction.norm(dim=-1)
    assert torch.nonzero(sizes > 1e-6 * sizes.max())[:, 0].tolist() == [*PLACES]
    cosines = direction[[*PLACES]] @ wanted / (sizes[[*PLACES]] * wanted.norm())
    assert cosines.tolist() == pytest.approx([1, -1], abs=0.01)
    assert float(direction.mean(0).norm()) < 1e-6 * float(sizes.max()), "what all tokens share is nothing"


@torch.no_grad()
def test_it_raises_the_answer_at_its_own_place_and_lowers_it_at_the_other(world, tmp_path):
    subject, _, contrast = world
    batch, at_f = subject.tokenize(["CCCCCC"]), subject.token_id("F")
    edits = fitted(subject, contrast, by="position")
    again = Edits.load(edits.save(tmp_path / "edits", subject), subject)
    plain, steered, read = (subject.run(batch, plan=plan).logits for plan in (None, edits.plan(1.0), again.plan(1.0)))
    assert torch.equal(steered, read)
    moved = (steered - plain)[0]
    assert torch.nonzero(moved.abs().amax(-1) > 1e-5)[:, 0].tolist() == [*PLACES]
    assert moved[PLACES[0], at_f] > 0.1
    twin = (subject.run(batch, plan=edits.twin(0).plan(1.0)).logits - plain)[0]
    assert abs(float(twin[PLACES[0], at_f])) < 0.5 * float(moved[PLACES[0], at_f])
    assert torch.equal(subject.run(batch, plan=edits.plan(0)).logits, plain)


def test_one_position_is_the_mean_over_sequences_there(world):
    """Against states read one sequence at a time; the unit is the median norm of a token."""
    subject, _, contrast = world
    found = fitted(subject, contrast, by="position", components=Residuals()).edits[0]
    states = torch.stack([
        subject.run(subject.tokenize([e.text]), capture=["layers.0.resid_post"]).captured["layers.0.resid_post"][0]
        for e in contrast.examples
    ])  # fmt: skip
    side = torch.from_numpy(contrast.side)
    delta = (states[side > 0].mean(0) - states[side < 0].mean(0))[1:-1]
    torch.testing.assert_close(
        found.direction[1:-1, 0] / found.direction.norm(), delta / delta.norm(), rtol=1e-4, atol=1e-5
    )
    assert not found.direction[[0, -1]].any(), "special tokens are not edited"
    assert found.scale == pytest.approx(float(states[:, 1:-1].norm(dim=-1).median()), rel=1e-5)


def test_what_has_no_positions_in_common_is_refused(world):
    subject, _, contrast = world
    longer = Contrast.of(subject, [e.text for e in contrast.examples] + ["CCN"], [*["b", "a"] * 4, "b"])
    with pytest.raises(InputError, match="sequences of 5 to 8 tokens have no positions in common"):
        fitted(subject, longer, by="position")
    with pytest.raises(InputError, match="by='position' keeps apart"):
        fitted(subject, contrast, by="position", how="mean")
    with pytest.raises(InputError, match="give token or position"):
        fitted(subject, contrast, by="place")
    # the middle tercile has no say, so that it may be of any length
    numbers = Contrast.of(
        subject, ["CNCCC", "CSCNC", "CC", "CCC", "COCCC", "CSCOC"], [5, 5, 3, 3, 1, 1], kind="regression"
    )
    assert fitted(subject, numbers, by="position").edits[0].direction.shape[0] == 7
