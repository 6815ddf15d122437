"""Reaction to an edit at a dose, beside a twin: against the parts it is made of, and what is not known says why."""

from dataclasses import replace
from math import isnan
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from isotrace.interventions import Plan, Tokens
from isotrace.steering import Calibrated, Edits
from isotrace.steering.questions import Questions
from isotrace.steering.response.detection import DETECTORS, detections, seen
from isotrace.steering.response.reaction import NO_TWIN, reaction
from isotrace.steering.response.resistance import persistence
from isotrace.studies.steering.steered import reacted
from tiny_edits import one_of

LETTERS = [a + b + c for a in "CNOF" for b in ("C", "N", "O", "CC") for c in "CNO"]


def dosed(edits, alpha):
    return replace(edits, dose=Calibrated(alpha, 0.1, 0.1))


@pytest.fixture
def parts(rotary):
    return rotary.tokenize(LETTERS[::2]), rotary.tokenize(LETTERS[1::2])


@pytest.fixture
def asked(rotary):
    return Questions.of(rotary, [rotary.tokenize(LETTERS[:6])])


def test_a_strong_edit_of_masked_tokens_is_noticed_and_none_is_not(rotary, parts, asked):
    """Of tokens that are hidden alone: pooled over the sequence as it stands such an edit would not be on."""
    edits = Edits((one_of("add", rotary, where=Tokens("masked")),))
    strong = reaction(rotary, dosed(edits, 40.0), dosed(edits, 0.0), parts, asked, (), None)
    assert strong.sequences == 24
    assert {*strong.noticed} == {*DETECTORS}
    assert strong.noticed["distance"].own == strong.noticed["read-out"].own == 1
    for one in strong.noticed.values():
        assert one.twin <= 0.05, "at α = 0 nothing is on, so what is found are false alarms"
        assert one.why is None
    plan = edits.plan(40.0)
    whole = seen(rotary, [parts[0]], plan)
    np.testing.assert_array_equal(whole.state, seen(rotary, [parts[0]], Plan()).state)
    np.testing.assert_array_equal(whole.entropy, seen(rotary, [parts[0]], plan, "asked").entropy)


def test_states_of_what_is_asked_are_those_that_predict(rotary):
    plan = one_of("add", rotary, where=Tokens("masked")).plan(0.5)
    found = seen(rotary, [rotary.tokenize(["CCO", "CN"])], plan, "asked")
    for row, (text, positions) in enumerate((("CCO", (1, 2, 3)), ("CN", (1, 2)))):
        states = []
        for position in positions:
            hidden, place = rotary.prepare_prediction(rotary.tokenize([text]), position)
            states.append(rotary.run(hidden, plan=plan).final[0, place])
        np.testing.assert_allclose(found.state[row], torch.stack(states).mean(0), rtol=1e-3, atol=1e-5)


def test_power_holds_false_alarms_where_few_are_fitted_on(rotary):
    """The distance of 20 plain runs from their own Gaussian in 40 dimensions says nothing of new ones."""
    rng = np.random.default_rng(0)
    one = seen(rotary, [rotary.tokenize(["CC"])], Plan())
    drawn = lambda n: replace(one, entropy=rng.normal(size=n), likelihood=rng.normal(size=n),  # noqa: E731
                              state=rng.normal(size=(n, 40)))  # fmt: skip
    plain = drawn(20), drawn(2_000)
    for found in detections({"nothing": (drawn(20), drawn(2_000))}, plain):
        assert found.power == pytest.approx(0.05, abs=0.02)
        if found.detector == "distance":
            assert found.false_alarms > 0.3


def test_what_is_left_is_the_persistence_behind_the_last_layer(rotary, parts, asked):
    edits = Edits((one_of("add", rotary),))
    own, twin = dosed(edits, 0.5), dosed(edits.twin(3), 0.7)
    found = reaction(rotary, own, twin, None, asked, (), None)
    for one, said in ((own, found.left.own), (twin, found.left.twin)):
        each = persistence(rotary, one, asked.batches, one.dose.alpha, n_twins=0)
        assert len(each.layers) == rotary.n_layers
        assert said == pytest.approx(each.own[-1])
    assert found.sequences == 0
    last = Edits((one_of("add", rotary, layer=rotary.n_layers - 1),))
    assert reaction(rotary, dosed(last, 0.5), None, None, asked, (), None).left.why == "the edit is at the last layer"


def test_what_is_set_back_is_counted_over_both_writings(rotary, asked):
    """Under an edit N is written for C; without one it is taken back in two starts under the edit, in none of three
    under the twin. A start that cannot be used is left out."""
    edits = Edits((one_of("add", rotary),))
    own, twin = dosed(edits, 0.5), dosed(edits.twin(1), 0.25)
    starts, asked_of = ("CCO", "CCF", "CC?", "COC"), []

    def rewrite(texts, plan):
        asked_of.append((tuple(texts), len(plan)))
        usable = {i: text for i, text in enumerate(texts) if "?" not in text}
        if len(plan):
            here = "".join("N" if plan == own.plan() else "O")
            return {i: text.replace("C", here) for i, text in usable.items()}
        return {i: text.replace("N", "C") if text[-1] in "OF" else text for i, text in usable.items()}

    found = reaction(rotary, own, twin, None, asked, starts, rewrite)
    # own: CCO, CCF → NNO, NNF → back; COC → NON stays: 4 of 6. Twin: OOO, OOF, OOO stay: none of 6
    assert (found.reversed.own, found.reversed.twin) == (pytest.approx(4 / 6), 0)
    assert found.excess[0] <= 4 / 6 <= found.excess[1]
    assert asked_of[0] == (starts, 1)
    assert asked_of[1] == (("NNO", "NNF", "NON"), 0)


def test_what_is_not_known_says_why(rotary, asked):
    gain = dosed(Edits((one_of("gain", rotary),)), 0.5)
    found = reaction(rotary, gain, None, None, asked, ("CCO",), lambda texts, plan: dict(enumerate(texts)))
    assert "20" not in str(found.noticed["entropy"].why)
    assert "too few sequences" in str(found.noticed["entropy"].why)
    assert "one direction added to the residual stream" in str(found.left.why)
    assert "nothing was written" in str(found.reversed.why)
    assert all(isnan(x) for x in (found.left.own, found.reversed.own, *found.excess, found.noticed["distance"].twin))
    add = dosed(Edits((one_of("add", rotary),)), 0.5)
    alone = reaction(rotary, add, None, None, asked, (), None)
    assert (alone.left.why, isnan(alone.left.twin), isnan(alone.left.own)) == (NO_TWIN, True, False)
    assert "no changes of its starts" in str(alone.reversed.why)


def test_studies_tell_it_in_rows(rotary, asked):
    add = dosed(Edits((one_of("add", rotary),)), 0.5)
    found = SimpleNamespace(reaction=reaction(rotary, add, add, None, asked, (), None))
    rows = reacted(found)  # pyright: ignore[reportArgumentType]
    assert [row["share"] for row in rows] == [*(f"found by {name}" for name in DETECTORS), "left", "set back"]
    assert rows[4]["edit"] == rows[4]["random"] == found.reaction.left.own
    assert reacted(SimpleNamespace(reaction=None)) == []  # pyright: ignore[reportArgumentType]
