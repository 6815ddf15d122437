"""The planted world of steering is what it is said to be, and the study tells what is known of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import beta

from isotrace.base.errors import InputError
from isotrace.base.progress import silent
from isotrace.interventions import Intervention, Neurons, Plan, Select, Set
from isotrace.steering import Calibrated
from isotrace.steering.directions.direction import DIRECTIONS, Direction
from isotrace.steering.trials import experiment
from isotrace.studies.steering import planted_methods
from isotrace.studies.steering.planted_benchmark import KINDS, LEVEL, Size, claims, label_rows, ledger_rows, summed
from isotrace.studies.steering.steer_planted import SIZES, causal_rows
from isotrace.studies.study import Setting
from isotrace.studies.worlds.planted_steering import GATE, A, B, contrast_of, planted_world, sequences, share

SMALL = Size(sequences=160, starts=4, designs=2, twins=4, label_twins=2, right=1, shuffled=1, confounded=1)
MISSED = {("regime_delta", ""), ("probe", ""), ("gradient", "")}
"""The defaults that do not reach the criterion; other settings of theirs do."""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return planted_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def _few_questions(monkeypatch):
    """A dose is measured on four sequences."""
    monkeypatch.setattr(experiment, "CALIBRATION", 4)


@torch.no_grad()
def logits(world, texts, residues=A, off=None):
    """Mean logit of `residues` in each, one neuron silenced or none."""
    where = () if off is None else (Intervention(Neurons(), Set(0.0), Select((off[0],), (off[1],))),)
    ids = [world.subject.token_id(t) for t in residues]
    batch = world.subject.tokenize(texts)
    real = (batch.mask & ~world.subject.special(batch.ids))[..., None]
    found = world.subject.run(batch, plan=Plan.of(*where)).logits[..., ids]
    return ((found * real).sum((1, 2)) / real.sum((1, 2)) / len(ids)).numpy()


def test_each_planted_neuron_does_what_it_is_said_to(world):
    texts = sequences(60, 1)
    plain = logits(world, texts)
    assert np.corrcoef(plain, [share(t) for t in texts])[0, 1] > 0.99
    assert np.abs(logits(world, texts, off=world.neurons["A"])).max() < 0.01
    for name in ("B", "decoy", "dormant"):
        np.testing.assert_allclose(logits(world, texts, off=world.neurons[name]), plain, atol=1e-3)
    assert np.abs(logits(world, texts, B) - logits(world, texts, B, off=world.neurons["B"])).max() > 0.3
    gated = [text for text in (f"{t[:-1]}{GATE}" for t in texts) if share(text) > 0.3]
    taken = logits(world, gated) - logits(world, gated, off=world.neurons["dormant"])
    assert taken.min() > 0.1  # where W opens it, the path carries
    lengths = [len(t) for t in texts]
    assert 0.2 < np.corrcoef(lengths, [share(t) for t in texts])[0, 1] < 0.8
    assert GATE not in "".join(texts)


def test_all_methods_of_the_registry_are_told_and_the_misses_are_known(world):
    rows = planted_methods.method_rows(world, 120, 0, silent)
    assert {row["method"] for row in rows} == set(DIRECTIONS)
    assert {(row["method"], row["settings"]) for row in rows if not row["found"]} <= MISSED
    assert not [(row["method"], row["why"]) for row in rows if row["value"] is None], "none refuses"
    for row in rows:
        assert (row["value"] is None) == (row["why"] is not None)
        if not row["found"] or row["decoy"] is None or np.isnan(row["decoy"]):  # units that are not edited have no rank
            continue
        if row["held_to"].startswith("cosine"):
            assert row["decoy"] < 0.2 < row["value"], row
        elif row["method"] != "austeer":  # decoys that fire with A have its momentum: no observation tells them apart
            assert row["decoy"] > row["value"], row


def test_a_method_that_cannot_fit_has_a_row_with_its_reason(world):
    def run(fitting):
        raise InputError("it needs the moon: give it.")

    entry = Direction("lunar", run, "", "", "", "", "", "", "")
    row = planted_methods._row(world, entry, {}, contrast_of(world.subject, sequences(40, 0)))
    assert not row["found"]
    assert row["why"].count("it needs the moon") == 3


def test_at_equal_dose_neither_decoy_nor_b_ranks_above_a(world, tmp_path):
    contrast = contrast_of(world.subject, sequences(SMALL.sequences, 0))
    rows, *_ = causal_rows(world, contrast, SMALL, Setting(True, tmp_path, 0, silent, {}))
    rows = {row["direction"]: row for row in rows}
    assert rows["A"]["effect_ci"][0] > rows["A"]["twins_largest"]
    assert rows["A"]["p"] == 1 / (1 + SMALL.twins)
    for name in ("B", "decoy"):
        assert rows[name]["effect"] < rows["A"]["effect_ci"][0]
        assert rows[name]["effect"] <= rows["A"]["twins_largest"]
    assert [name for name, row in rows.items() if row["dormant"]] == ["dormant"]
    assert {name: row["reached"] for name, row in rows.items()} == {
        "A": True, "B": True, "decoy": False, "dormant": True
    }  # fmt: skip
    assert rows["decoy"]["kl"] < 0.01


def test_what_is_counted_is_what_was_done(world):
    starts = sequences(4, 9)
    edit = DIRECTIONS["difference_in_means"].fit(
        world.subject, contrast_of(world.subject, sequences(40, 0)), layers=(1,)
    )
    rows = ledger_rows(world, replace(edit, dose=Calibrated(1.0, 0.1, 0.1)), starts, SMALL, 4)
    for row in rows:
        assert row["forwards"] == row["forwards_seen"] == sum(map(len, starts)) * SMALL.designs
        assert row["calls"] == row["calls_by_hand"] <= len(starts) * SMALL.designs
    assert rows[1]["same_designs"]
    assert rows[1]["ties"] == len(starts)
    assert not rows[0]["same_designs"]


def test_win_rates_are_over_trials_with_exact_intervals():
    found = summed(np.asarray([1.0] * 5 + [-2.0] * 15 + [0.0]), 0)
    assert (found["trials"], found["wins"], found["win_rate"]) == (21, 5, 0.25)
    # Clopper and Pearson from the beta law
    assert found["win_rate_ci"] == pytest.approx([beta.ppf(0.025, 5, 16), beta.ppf(0.975, 6, 15)])
    assert found["effect"] == pytest.approx(-25 / 21)
    assert np.isnan(summed(np.zeros(3), 0)["win_rate"])


def test_claims_need_twins_enough():
    assert claims(np.asarray([0.05, 0.5]), 18) == {"claimed": None, "claimed_rate_ci": None}
    found = claims(np.asarray([0.05, 0.5, 0.1]), 19)
    assert found["claimed"] == 1
    assert found["claimed_rate_ci"] == pytest.approx([beta.ppf(0.025, 1, 3), beta.ppf(0.975, 2, 2)])


def test_a_trial_of_right_labels_raises_the_property(world):
    (row,) = label_rows(world, SMALL, 0, silent, KINDS[:1])
    assert row["wins"] == row["clear"] == row["over_twins_wins"] == SMALL.right
    assert row["effect"] > 0.1


@pytest.mark.nightly
def test_the_whole_benchmark_is_calibrated_over_its_seeds(world):
    """As `--full` has it: shuffled labels win half of the time, and what means nothing is claimed no more often than
    the level says once directions of shuffled labels are among what a trial is compared with."""
    right, shuffled, free, matched = label_rows(world, SIZES[False], 0, silent)
    for row in (right, free):
        assert row["wins"] == row["trials"]
        assert row["effect_ci"][0] > 0.1
    assert shuffled["win_rate_ci"][0] <= 0.5 <= shuffled["win_rate_ci"][1]
    assert shuffled["effect_ci"][0] <= 0 <= shuffled["effect_ci"][1]
    assert matched["win_rate_ci"][0] <= 0.5  # random directions lower the property, and so may this one
    assert matched["effect_ci"][0] <= 0
    for row in (shuffled, matched):
        assert row["claimed_rate_ci"][0] <= LEVEL
