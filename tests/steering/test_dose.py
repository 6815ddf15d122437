"""Doses: the divergence against one computed by hand, the first bracket, what cannot be reached; the safe window."""

from dataclasses import replace
from math import isnan

import numpy as np
import pytest
import torch

import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.domains.domain import domain_of
from isotrace.interventions import Residuals, Tokens
from isotrace.steering import AddEdit, Edits
from isotrace.steering.dose import (
    GRID,
    Dose,
    Window,
    calibrated,
    degenerate_share,
    perplexities,
    safe_window,
    usual_floor,
)
from isotrace.steering.questions import Questions
from tiny_edits import one_of

TEXTS = ["CCO", "c1cc[nH]c1"]


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A causal subject, an encoder–decoder, and one that writes another sequence than it reads."""
    root = tmp_path_factory.mktemp("others")
    models = {v: tiny.tiny_model(v) for v in ("gpt2", "bart")}
    models["translating"] = tiny.tiny_model("bart", translating=True, decoder_start_token_id=0)
    return {v: tiny.load_tiny(tiny.save_subject(model, root / v)) for v, model in models.items()}


def divergence(p, q):
    p, q = (x.double().log_softmax(-1) for x in (p, q))
    return float((p.exp() * (p - q)).sum())


def test_each_token_masked_alone(rotary):
    edits, plan = Edits((one_of("add", rotary),)), one_of("add", rotary).plan(0.5)
    asked = Questions.of(rotary, [rotary.tokenize(TEXTS), rotary.tokenize(["CCN"])])
    assert (asked.inputs, asked.n) == (3, 3 + 7 + 3)
    expected = []
    for text in (*TEXTS, "CCN"):
        alone = rotary.tokenize([text])
        for position in range(1, alone.ids.shape[1] - 1):
            hidden, place = rotary.prepare_prediction(alone, position)
            p, q = (rotary.run(hidden, plan=one).logits[0, place] for one in (None, plan))
            expected.append(divergence(p, q))
    dose = Dose(edits, asked)
    torch.testing.assert_close(dose.each(plan), torch.tensor(expected).double(), rtol=1e-3, atol=1e-6)
    assert dose.at(0.0) == 0
    assert dose.at(0.5) == pytest.approx(np.mean(expected), rel=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "bart", "translating"])
def test_teacher_forced(others, name):
    """A causal or translating subject at the place before every token but the first, another decoder at its own."""
    subject = others[name]
    sources = ["CCC", "OCCN"] if name == "translating" else None
    batch, plan = subject.tokenize(["CCO", "CCN"], sources=sources), one_of("add", subject, layer=1).plan(0.5)
    asked = Questions.of(subject, [batch])
    places = range(1, batch.ids.shape[1] - 1)
    p, q = (subject.run(batch, plan=one).logits for one in (None, plan))
    back = 1 if subject.predicts_next else 0
    expected = [divergence(p[row, at - back], q[row, at - back]) for row in range(2) for at in places]
    found = Dose(Edits((one_of("add", subject, layer=1),)), asked).each(plan)
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-3, atol=1e-6)


def test_sites_are_what_is_asked_about(rotary, others):
    batch = rotary.tokenize(TEXTS)
    sites = torch.zeros_like(batch.mask)
    sites[0, 2] = sites[1, 4] = sites[1, 5] = True
    given = replace(batch, sites=sites)
    asked = Questions.of(rotary, [given])
    assert asked.truth[0].tolist() == batch.ids[sites].tolist()
    mutable = replace(one_of("add", rotary), where=Tokens("mutable"))
    moved = Dose(Edits((mutable,)), asked).each(mutable.plan(0.5))
    assert len(moved) == 3
    assert (moved > 0).all()
    causal = others["gpt2"]
    batch = causal.tokenize(["CCO"])
    sites = torch.zeros_like(batch.mask)
    sites[0, 3:] = True
    asked = Questions.of(causal, [replace(batch, sites=sites)])
    written = replace(one_of("add", causal), where=Tokens("generated"))
    # the place that predicts the first written token stands before it, where such an edit is off
    found = Dose(Edits((written,)), asked).each(written.plan(0.5))
    assert found[0] == 0


def test_a_dose_is_reached_within_five_per_cent(rotary, others):
    for subject in (rotary, *others.values()):
        batches = [subject.tokenize(TEXTS)]
        edits = Edits((one_of("add", subject, layer=1),), "mean")
        found = calibrated(edits, subject, batches, 0.02)
        again = Dose(edits, Questions.of(subject, batches)).at(found.dose.alpha)
        assert abs(again - 0.02) <= 0.05 * 0.02
        assert found.dose.kl == pytest.approx(again)
        assert found.dose.how["objective"] == subject.objective
        assert found.plan() == edits.plan(found.dose.alpha)
        against = calibrated(edits, subject, batches, 0.02, grid=[-alpha for alpha in GRID])
        assert against.dose.alpha < 0


class Curve(Dose):
    """A dose that is any function of α."""

    def __init__(self, function):
        self.function, self.edits, self.asked_at = function, Edits((AddEdit(
            components=Residuals(), layer=0, direction=torch.ones(4), scale=1.0),), "mean"), []  # fmt: skip
        self.questions = Questions(tiny_subject(), (), (), (), (torch.zeros(1),))

    def at(self, alpha):
        self.asked_at.append(alpha)
        return self.function(alpha)


def tiny_subject():
    return type("Named", (), {"objective": "masked"})()


def bump(alpha):
    """Up to 0.2 at α = 1, back to 0.05 at 2, then up for good."""
    return float(np.interp(alpha, [0, 1, 2, 8], [0, 0.2, 0.05, 2]))


def test_the_first_bracket_is_halved():
    found = Curve(bump).reach(0.1)
    assert found.alpha < 1
    assert found.kl == pytest.approx(0.1, rel=0.05)
    late = Curve(bump)
    assert 2 < late.reach(0.5).alpha < 8
    assert max(late.asked_at) < 8
    assert Curve(bump).reach(0.1, tolerance=0.001).kl == pytest.approx(0.1, rel=0.001)
    assert Curve(lambda a: 100 * a * a).reach(1e-4).alpha < GRID[0], "also below the grid"


def test_what_cannot_be_reached():
    with pytest.raises(InputError, match=r"0\.6 nats is not reached by mean: the largest is 0\.4, at α = 0\.4"):
        Curve(lambda a: a if a < 0.41 else 0.01).reach(0.6, grid=(0.1, 0.2, 0.4, 0.8))
    with pytest.raises(InputError, match=r"jump of mean, from 0\.1 to 3 at α = 0\.3"):
        Curve(lambda a: 0.1 if a < 0.3 else 3.0).reach(1.0)
    for target in (0, -1, torch.nan, torch.inf):
        with pytest.raises(InputError, match="give a number above 0"):
            Curve(bump).reach(target)


def test_edits_without_effect_and_with_too_much(rotary, others):
    causal = others["gpt2"]
    last = Edits((replace(one_of("add", causal), where=Tokens("last")),), "mean")
    with pytest.raises(InputError, match="not reached by mean: the largest is 0, "):
        calibrated(last, causal, [causal.tokenize(["CCO"])], 0.1, grid=(0.1, 10.0))
    burst = Edits((replace(one_of("add", rotary), scale=3e38),))
    with pytest.raises(InputError, match="the subject predicts NaN: give a smaller dose"):
        calibrated(burst, rotary, [rotary.tokenize(["CCO"])], 1e9, grid=(8.0,))
    with pytest.raises(InputError, match="no token to compare distributions at"):
        first = causal.tokenize(["C"])
        Questions.of(causal, [replace(first, sites=first.mask & (first.ids == first.ids[0, 0]))])
    rotary.has_head = False
    try:
        with pytest.raises(SubjectError, match="no distribution to compare"):
            Questions.of(rotary, [rotary.tokenize(["CCO"])])
    finally:
        rotary.has_head = True


def test_perplexity_under_another_model(rotary, others):
    judge, texts = others["gpt2"], ["CCO", "CCCCN"]
    found = perplexities(judge, [judge.tokenize([text]) for text in texts], rotary)
    for value, text in zip(found, texts, strict=True):
        batch = judge.tokenize([text])
        p = judge.run(batch).logits[0].log_softmax(-1)
        losses = [-p[at - 1, batch.ids[0, at]] for at in range(2, batch.ids.shape[1] - 1)]
        losses.append(-p[0, batch.ids[0, 1]])
        assert value == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-4)
    masked = perplexities(rotary, [rotary.tokenize(texts)], judge)
    assert (masked > 1).all()
    with pytest.raises(InputError, match="judge them by another model"):
        perplexities(judge, [judge.tokenize(texts)], judge)


def test_the_safe_window():
    doses, perplexity = [0.1, 0.025, 0.5], [7.5, 7.1, 7.2]
    plain, valid = (0.01, 7.0, 0.9), [0.9, 1.0, 0.8]
    assert safe_window(doses, [0.02, 0.0, 0.05], perplexity, valid, plain) == Window(0.5, None)
    flagged = safe_window(doses, [0.12, 0.0, 0.02], perplexity, valid, plain)
    assert flagged == Window(0.025, "at 0.1 nats 12% are degenerate, unsteered 1%")
    strained = safe_window(doses, [0.0, 0.0, 0.0], [7.5, 8.5, 7.2], valid, plain)
    assert strained == Window(0.0, "at 0.025 nats the perplexity is 8.5, unsteered 7")
    broken = safe_window(doses, [0.0] * 3, perplexity, [0.7, 0.9, 0.9], plain)
    assert broken == Window(0.025, "at 0.1 nats 70% are valid, unsteered 90%")
    assert safe_window(doses, [torch.nan, 0.0, 0.0], perplexity, valid, plain).largest == 0.025
    with pytest.raises(InputError, match="no readable design"):
        safe_window(doses, [0.0] * 3, perplexity, valid, (torch.nan, 7.0, 0.9))


def test_shares_of_degenerate_designs():
    molecule = domain_of("molecule")
    assert usual_floor(molecule, ["CCO", "CCN"]) is None
    share = degenerate_share(molecule, ["C" * 16, "c1ccccc1O", "c1cc", "CCO"], ["c1ccccc1"] * 4, None)
    assert share == (2 / 3, 1)
    none, unread = degenerate_share(molecule, ["c1cc"], [None], None)
    assert isnan(none)
    assert unread == 1
    rng = np.random.default_rng(0)
    chains = ["".join(rng.choice([*"ACDEFGHIKLMNPQRSTVWY"], 60)) for _ in range(200)]
    floor = usual_floor(domain_of("protein"), chains)
    assert degenerate_share(domain_of("protein"), chains, chains, floor)[0] == pytest.approx(0.01, abs=0.005)
