"""Two hand-written circuits in one subject: each family falls without its own head, and the other does not."""

import numpy as np
import pytest

from isotrace.base.progress import silent
from isotrace.studies.difficulty import recall_reasoning
from isotrace.studies.difficulty.recall_reasoning import (
    Pairs,
    Sample,
    chances,
    impairment,
    known,
    paired,
    ranked,
    samples,
)
from isotrace.studies.worlds.planted_weights import Weights


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """N anywhere is carried by head 0 of layer 0 and makes S likely, O by head 1 and makes F likely."""
    w = Weights([*(f"token {t}" for t in "CNOSF"), "saw N", "saw O", "answer S", "answer F"])
    w.head(0, [], [("token N", "saw N", 8.0)])
    w.head(0, [], [("token O", "saw O", 8.0)])
    w.neuron(1, {"saw N": 10.0}, 0.0, "answer S", length=20.0)
    w.neuron(1, {"saw O": 10.0}, 0.0, "answer F", length=20.0)
    subject = w.load(tmp_path_factory.mktemp("two"))
    pairs = []
    for i in range(8):
        place, texts = 1 + i % 4, (["C"] * 5, ["C"] * 5)
        texts[0][place - 1], texts[1][place - 1] = "S", "F"
        texts[0][4], texts[1][4] = "N", "O"
        made = [
            Sample("".join(text), place, subject.token_id(answer), 0.0, i)
            for text, answer in zip(texts, "SF", strict=True)
        ]
        pairs.append((made[0], made[1]))
    return subject, [Pairs.of(subject, pairs[:4]), Pairs.of(subject, pairs[4:])]


def test_each_family_needs_its_own_head_and_no_other(world):
    subject, every = world
    clean = known(subject, every)
    assert clean.min() > 0.95
    order = ranked(subject, every, silent)
    assert order[0][0] != order[1][0]
    for own in (0, 1):
        told = impairment(subject, every, own, order[own][:1], 5, 0, silent)
        assert told["selective"] >= 0.9 * clean[own].mean()
        assert told["selective_ci"][0] >= 0.9 * clean[own].mean()
        assert abs(told["other"]) < 0.05
        assert told["p"] <= 0.5
        assert told["random"] < told["selective"]


def test_pairs_are_as_long_as_sure_and_of_two_molecules(relu_subject, monkeypatch):
    monkeypatch.setattr(recall_reasoning, "FREQUENT", 1.0)  # every run
    texts = [f"C{a}CC(C){b}C1CC1" for a in "NO" for b in "NOSC"] * 2
    recall, reasoning = samples(relu_subject, texts)
    assert recall
    assert reasoning
    tokens = relu_subject.tokenize([texts[0]])
    closing = {s.place for s in reasoning if s.molecule == 0}
    assert {relu_subject.tokens(tokens.ids[0])[place] for place in closing} == {")", "1"}
    made, n = paired(relu_subject, recall, reasoning, 0, 10)
    assert n == sum(pairs.places.shape[1] for pairs in made) <= 10
    for pairs in made:
        odds = chances(relu_subject, pairs)
        assert np.abs(odds[0] - odds[1]).max() <= 0.1 + 1e-6
        assert (pairs.batches[0].ids == relu_subject.mask_id).sum() == pairs.places.shape[1]
