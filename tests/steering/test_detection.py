"""What detectors see of edits: nothing where there is nothing, all where it is large, and one in twenty by mistake."""

from dataclasses import replace

import numpy as np
import pytest

from isotrace.base.errors import InputError
from isotrace.interventions import Plan
from isotrace.steering import Edits
from isotrace.steering.response.detection import DETECTORS, Seen, detectability, detections, identification, seen
from tiny_edits import one_of


def drawn(rng, n, shift=0.0, spread=1.0):
    state = rng.normal(size=(n, 6)) + shift * np.eye(6)[0]
    return Seen(rng.normal(size=n) * spread, rng.normal(size=n) * spread, state)


def test_false_alarms_are_one_in_twenty():
    rng = np.random.default_rng(0)
    plain = drawn(rng, 4_000), drawn(rng, 4_000)
    for one in detections({"nothing": (drawn(rng, 4_000), drawn(rng, 4_000))}, plain):
        assert one.auroc == pytest.approx(0.5, abs=0.02)
        assert one.hits == pytest.approx(0.05, abs=0.015)
        assert one.false_alarms == pytest.approx(0.05, abs=0.015)


def test_each_detector_finds_its_own():
    """A shift of 3 sd of one coordinate: the read-out's AUROC is Φ(3/√2); spread entropies are found either way."""
    rng = np.random.default_rng(1)
    plain = drawn(rng, 4_000), drawn(rng, 4_000)
    shifted = {"shifted": (drawn(rng, 4_000, 3.0), drawn(rng, 4_000, 3.0))}
    found = {one.detector: one for one in detections(shifted, plain)}
    assert found["read-out"].auroc == pytest.approx(0.983, abs=0.01)
    assert found["read-out"].hits > found["distance"].hits > 0.5
    assert found["entropy"].auroc == pytest.approx(0.5, abs=0.02)
    wide = {"wide": (drawn(rng, 4_000, spread=5.0), drawn(rng, 4_000, spread=5.0))}
    found = {one.detector: one for one in detections(wide, plain)}
    assert found["entropy"].auroc > 0.8
    assert found["likelihood"].auroc > 0.8
    assert found["distance"].auroc == pytest.approx(0.5, abs=0.02)


def test_which_edit_it_was():
    rng = np.random.default_rng(2)
    make = lambda at: Seen(np.zeros(500), np.zeros(500), rng.normal(size=(500, 6)) + at)  # noqa: E731
    plain = make(0), make(0)
    apart = {str(i): (make(8 * np.eye(6)[i]), make(8 * np.eye(6)[i])) for i in range(3)}
    found = identification(apart, plain)
    assert found.accuracy > 0.99
    assert found.chance == 0.25
    alike = {str(i): (make(0), make(0)) for i in range(3)}
    assert identification(alike, plain).accuracy == pytest.approx(0.25, abs=0.06)
    with pytest.raises(InputError, match="two or more"):
        identification({"one": plain}, plain)


def test_what_is_seen(rotary):
    """Against the subject asked one token at a time."""
    plan = one_of("add", rotary).plan(0.5)
    texts = ["CCO", "CCN"]
    found = seen(rotary, [rotary.tokenize(texts)], plan)
    for row, text in enumerate(texts):
        alone, entropy, likelihood = rotary.tokenize([text]), [], []
        for position in (1, 2, 3):
            hidden, place = rotary.prepare_prediction(alone, position)
            p = rotary.run(hidden, plan=plan).logits[0, place].double().log_softmax(-1)
            entropy.append(float(-(p.exp() * p).sum()))
            likelihood.append(float(p[alone.ids[0, position]]))
        assert found.entropy[row] == pytest.approx(np.mean(entropy), rel=1e-4)
        assert found.likelihood[row] == pytest.approx(np.mean(likelihood), rel=1e-4)
        final = rotary.run(alone, plan=plan).final[0, 1:4].mean(0)
        np.testing.assert_allclose(found.state[row], final.numpy(), rtol=1e-3, atol=1e-5)


def test_strong_edits_are_noticed_and_none_is_not(rotary):
    letters = [a + b + c for a in "CNOF" for b in ("C", "N", "O", "CC") for c in "CNO"]
    fit, held = ([rotary.tokenize(part)] for part in (letters[::2], letters[1::2]))
    edits = Edits((one_of("add", rotary, layer=1),))
    found = detectability(rotary, edits, fit, held, (0.0, 8.0), n_twins=1)
    assert len(found) == 2 * len(DETECTORS)
    for one in found:
        assert len(one.twins) == 1
        if one.alpha == 0:
            assert one.own.auroc == 0.5
            assert one.own.hits == one.own.false_alarms
        elif one.own.detector == "distance":
            assert one.own.auroc == 1
            assert one.own.hits == 1
    assert replace(found[0].own, name="") == replace(found[0].twins[0], name=""), "at α = 0 both are the plain run"
    with pytest.raises(InputError, match="set no threshold of one in twenty"):
        short = [seen(rotary, [rotary.tokenize(letters[:3])], Plan())] * 2
        detections({}, (short[0], short[1]))
