"""Contrasts: sides, pairs, confounds held fixed, and what flows in the sequences of one."""

import numpy as np
import polars as pl
import pytest
import torch

import tiny
from isotrace.base.errors import InputError
from isotrace.interventions import Heads, Residuals
from isotrace.steering.contrast import CALIPER, Contrast
from isotrace.steering.states import by_position, checked_layers, pooled, token_weights, weighted
from isotrace.subjects.probe import pool


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    folder = tiny.save_subject(tiny.tiny_model("esm-rotary"), tmp_path_factory.mktemp("subject"))
    return tiny.load_tiny(folder)


MOLECULES = ["CCO", "CCCO", "CC(C)O", "CCCCO", "CCN", "CCCN", "C1CCN1", "CCCCN"]
LABELS = ["alcohol"] * 4 + ["amine"] * 4


def test_classes_give_two_sides_and_numbers_their_outer_terciles(subject):
    contrast = Contrast.of(subject, MOLECULES, LABELS)
    assert contrast.side.tolist() == [-1] * 4 + [1] * 4
    assert Contrast.of(subject, MOLECULES, LABELS, positive="alcohol").side.tolist() == [1] * 4 + [-1] * 4
    numbers = Contrast.of(subject, MOLECULES[:6], [0.5, 3, 1, 2, 5, 4])
    assert numbers.side.tolist() == [-1, 0, -1, 0, 1, 1]
    three = Contrast.of(subject, MOLECULES[:6], [*"aabbcc"], positive="b")
    assert three.side.tolist() == [-1, -1, 1, 1, -1, -1]


def test_rows_that_cannot_be_read_or_have_no_label_are_rejected_and_the_rest_goes_on(subject):
    contrast = Contrast.of(subject, [*MOLECULES, "C1CC", "C%", "CC"], [*LABELS, "amine", "amine", None])
    assert len(contrast) == len(MOLECULES)
    assert [index for index, *_ in contrast.rejects] == [8, 9, 10]
    numbers = Contrast.of(subject, MOLECULES, [0.5, 3, 1, 2, 5, 4, float("nan"), 6])
    assert [(i, "no label" in why) for i, _, why in numbers.rejects] == [(6, True)]


@pytest.mark.parametrize(
    ("labels", "more", "said"),
    [
        (["amine"] * 8, {}, "one class only"),
        ([None] * 8, {}, "no row can be used"),
        ([float("nan")] * 8, {}, "no row can be used"),
        ([*"aabbccdd"], {}, "4 classes"),
        (LABELS, {"positive": "acid"}, "no class 'acid'"),
        ([0.5] * 7 + [1.5], {}, "terciles"),
        (LABELS, {"pairs": ["x", "x", *"abcdef"]}, "pair 'x'"),
        (LABELS, {"groups": ["g"] * 3}, "differ in number"),
    ],
)
def test_one_clear_line_says_what_is_wrong(subject, labels, more, said):
    with pytest.raises(InputError, match=said) as caught:
        Contrast.of(subject, MOLECULES, labels, **more)
    assert "\n" not in str(caught.value)


def test_a_table_names_pairs_and_groups(subject):
    table = pl.DataFrame({"smiles": MOLECULES, "y": LABELS, "twin": [1, 2, None, 3, 2, 1, 3, None]})
    contrast = Contrast.read(subject, table, "y", pair="twin")
    assert contrast.pairs.tolist() == [[5, 0], [4, 1], [6, 3]]
    grouped = Contrast.of(subject, MOLECULES, LABELS, groups=["p", "q"] * 4)
    # the shortest of either side first
    assert {tuple(pair) for pair in grouped.pairs} == {(4, 0), (6, 2), (5, 1), (7, 3)}
    with pytest.raises(InputError, match="no column"):
        Contrast.read(subject, table, "z")
    for part in grouped.split(seed=1):
        assert len(set(part.groups)) == 1
        assert sorted(part.side.tolist()) == [-1, -1, 1, 1]
        assert len(part.pairs) == 2


def test_weights_are_the_difference_of_means_and_residual_ones_hold_confounds(subject):
    contrast = Contrast.of(subject, MOLECULES, LABELS)
    state = np.random.default_rng(0).normal(size=(8, 3))
    np.testing.assert_allclose(contrast.weights @ state, state[4:].mean(0) - state[:4].mean(0), atol=1e-12)
    held = contrast.residual("length", "ring")
    for name in held.held:
        assert abs(held.weights @ contrast.confounds[name]) < 1e-12
    # the coefficient of the side in the regression on side and confounds
    design = np.stack([np.ones(8), *(contrast.confounds[name] for name in held.held), contrast.side / 2], 1)
    np.testing.assert_allclose(held.weights @ state, np.linalg.lstsq(design, state, rcond=None)[0][-1], atol=1e-12)
    assert {"length", "ring", "branch", "token O"} <= set(contrast.confounds)
    with pytest.raises(InputError, match="no confound"):
        contrast.residual("colour")
    with pytest.raises(InputError, match="say which side"):
        _ = contrast.residual("token O").weights
    with pytest.raises(InputError, match="match"):
        held.need_sides("lineas")


def test_matching_pairs_what_agrees_and_leaves_the_rest_out(subject):
    long = [*MOLECULES, "CCCCCCCCN", "CCCCCCCCCN"]
    contrast = Contrast.of(subject, long, [*LABELS, "amine", "amine"])
    matched = contrast.match("length")
    lengths = matched.confounds["length"]
    assert len(matched.pairs) == 4
    assert np.abs(np.diff(lengths[matched.pairs], axis=1)).max() <= CALIPER * lengths.std()
    assert abs(matched.weights @ lengths) < abs(contrast.weights @ lengths) / 10
    assert set(np.flatnonzero(matched.side)) == set(matched.pairs.flatten())
    with pytest.raises(InputError, match="agree"):
        Contrast.of(subject, ["CO", "CCCCCCCCCO", "CCN"], ["a", "a", "b"]).match("length", caliper=1e-3)


def test_shuffled_labels_are_as_many_and_keep_pairs_together(subject):
    contrast = Contrast.of(subject, MOLECULES, LABELS, groups=["p", "q"] * 4)
    shuffled = [contrast.shuffled(seed) for seed in range(6)]
    assert all(one.side.sum() == 0 for one in shuffled)
    assert len({tuple(one.side) for one in shuffled}) > 3
    for one in shuffled:
        assert (one.side[one.pairs] == [1, -1]).all()
        assert {frozenset(p) for p in one.pairs.tolist()} == {frozenset(p) for p in contrast.pairs.tolist()}
    assert contrast.sha256 == Contrast.of(subject, MOLECULES, LABELS, groups=["p", "q"] * 4).sha256
    assert contrast.sha256 not in {one.sha256 for one in shuffled if tuple(one.side) != tuple(contrast.side)}


@torch.no_grad()
def test_states_are_those_of_single_passes(subject):
    contrast = Contrast.of(subject, MOLECULES, LABELS)
    layers = checked_layers(subject, Residuals(), (2, 0))
    means, last = (pooled(subject, contrast.examples, Residuals(), layers, how) for how in ("mean", "last"))
    places = dict(by_position(subject, contrast.examples, Residuals(), layers))
    sums, lengths = weighted(subject, contrast.examples, Residuals(), layers, contrast.weights[:, None])
    norms = []
    for i, text in enumerate(MOLECULES):
        batch = subject.tokenize([text])
        hidden = subject.hidden(batch.ids, batch.mask, (1,))
        torch.testing.assert_close(means[0][i], pool(subject, batch, hidden)[0].double(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(last[0][i], hidden[0, -2].double(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(places[i][0], hidden[0].double(), rtol=1e-4, atol=1e-5)
        assert int(token_weights(subject, batch, "last").argmax()) == len(batch.ids[0]) - 2
        norms.append(hidden[0, 1:-1].norm(dim=-1))
    torch.testing.assert_close(sums[0][0], torch.from_numpy(contrast.weights) @ means[0])
    assert lengths[0] == pytest.approx(float(torch.cat(norms).median()), rel=1e-4)
    heads = pooled(subject, contrast.examples, Heads(), (1,))
    assert heads[1].shape == (8, subject.n_heads(1) * subject.d_head(1))
    with pytest.raises(InputError, match="no layer 7"):
        checked_layers(subject, Residuals(), (7,))
