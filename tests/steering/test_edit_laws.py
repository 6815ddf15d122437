"""The laws of edits, for every kind on every family: α = 0 is the subject to the bit, every kind has a twin."""

import pytest
import torch

from isotrace.interventions import Hookpoints, Plan, Residuals, Tokens
from isotrace.steering import EDITS, Edits
from isotrace.subjects.heads.pooled import MEAN
from tiny_edits import one_of

TEXTS = ["CCO", "c1cc[nH]c1"]


@pytest.mark.every_family
def test_every_kind_on_every_family(subject):
    batch = subject.tokenize(TEXTS)
    run = lambda plan: subject.run(batch, plan=plan).logits  # noqa: E731
    clean = run(Plan())
    assert torch.equal(clean, run(None))
    for kind in EDITS:
        edits = Edits((one_of(kind, subject),))
        edits.check(subject)
        twin = edits.twin(0)
        assert torch.equal(run(edits.plan(0.0)), clean)
        assert torch.equal(run(twin.plan(0.0)), clean)
        edited, random = run(edits.plan(0.5)), run(twin.plan(0.5))
        for found in (edited, random):
            assert not torch.equal(found, clean), kind
        assert not torch.equal(edited, random), kind


@pytest.mark.every_family
def test_an_edit_changes_a_logit_at_every_hookpoint(subject):
    """Families whose blocks return a tuple, or whose MLPs have no module of their own, are edited like the others."""
    batch = subject.tokenize(TEXTS)
    clean = subject.run(batch).logits
    for kind in (*subject.family.hookpoints, MEAN):
        for layer in range(subject.n_layers):
            site = Hookpoints((f"layers.{layer}.{kind}",))
            direction = torch.randn(site.sizes(subject)[0], generator=torch.Generator().manual_seed(layer))
            edit = EDITS["add"](components=site, layer=0, direction=direction, scale=None)
            edit.check(subject)
            assert not torch.equal(subject.run(batch, plan=edit.plan(0.5)).logits, clean), (kind, layer)
    assert torch.equal(subject.run(batch).logits, clean)


@pytest.mark.parametrize("kind", EDITS)
def test_a_twin_is_the_edit_in_another_direction(rotary, kind):
    edit = one_of(kind, rotary, where=Tokens("last"), rounds=(0, 2))
    twins = [edit.twin(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    place = ("components", "layer", "where", "norm", "limit", "rounds")
    assert all(getattr(twin, name) == getattr(edit, name) for twin in twins for name in place)
    sizes = {
        "affine": lambda e: torch.cat([(e.scale - 1).abs().flatten().sort()[0], e.shift.abs().flatten().sort()[0]]),
        "gain": lambda e: e.beta.flatten().sort()[0],
        "feature": lambda e: e.values.abs() * e.components.dictionary.W_dec[0][[*e.units]].norm(dim=-1),
        "input": lambda e: torch.tensor([*e.sources.values()]),
        "swap": lambda e: torch.stack([e.direction.norm(), e.source.norm()]),
        "path": lambda e: e.points.flatten(1).norm(dim=1),
    }.get(kind, lambda e: e.direction.norm()[None])
    content = lambda e: e.plan(0.5).id  # noqa: E731
    assert content(twins[0]) == content(twins[1])
    assert len({content(e) for e in (edit, twins[0], twins[2])}) == 3
    for twin in twins:
        torch.testing.assert_close(sizes(twin), sizes(edit))


def test_a_twin_is_set_as_far_from_its_mean(rotary):
    edit = one_of("set", rotary)
    twin = edit.twin(torch.Generator().manual_seed(1))
    distance = lambda e: e.target - float((e.mean * e.direction).sum())  # noqa: E731
    assert distance(twin) == pytest.approx(distance(edit), abs=1e-5)


def test_a_twin_inside_a_covariance(rotary):
    """Of rank one it leaves a single line; a position-resolved direction keeps its norm at every position."""
    line = torch.nn.functional.normalize(torch.randn(16, generator=torch.Generator().manual_seed(2)), dim=0)
    edit = one_of("add", rotary)
    twin = edit.twin(torch.Generator().manual_seed(0), torch.outer(line, line))
    assert abs(float(twin.direction[0] @ line)) == pytest.approx(1, abs=1e-4)
    isotropic = edit.twin(torch.Generator().manual_seed(0))
    assert abs(float(isotropic.direction[0] @ line)) < 0.9
    places = torch.tensor([0.0, 3.0, 1.0, 0.0])[:, None, None] * line
    resolved = EDITS["add"](components=Residuals(), layer=0, direction=places, scale=1.0)
    assert float(resolved.direction.square().sum(-1).mean()) == pytest.approx(1)
    drawn = resolved.twin(torch.Generator().manual_seed(0)).direction
    torch.testing.assert_close(drawn.norm(dim=-1), resolved.direction.norm(dim=-1))
