"""A planted subject knows which atom a ring closes to; with neurons silenced it does not say so."""

import numpy as np
import pytest
import torch

import tiny
from isotrace.interventions import Intervention, Neurons, Plan, Select, Set
from isotrace.studies.difficulty.execution_gap import CLOSES, gap_rows, places, states_at
from isotrace.studies.worlds.planted_subjects import ring

ATOMS = "CNSPB"


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    with torch.random.fork_rng(devices=[]):
        return ring(tmp_path_factory.mktemp("gap"), 60, 0)


@torch.no_grad()
def rows_of(planted, plan: Plan):
    """Read at the digit that closes, where the atom to close to is known behind layer 1."""
    subject, batch = planted.subject, planted.clean
    names = [f"layers.{layer}.resid_post" for layer in range(subject.n_layers)]
    run = subject.run(batch, plan=plan, capture=names)
    states = np.stack([run.captured[name][:, -2].numpy() for name in names])
    logits = run.logits[:, -2, [subject.token_id(atom) for atom in ATOMS]].numpy()
    y = np.arange(60) // 2 % len(ATOMS)
    return gap_rows(states, logits, y, np.arange(60), 0)


def test_what_is_known_and_not_done_is_a_gap(planted):
    does = rows_of(planted, Plan())
    silent = rows_of(planted, Plan.of(Intervention(Neurons(), Set(0.0), Select((1,)))))
    assert (does[1]["probe"], does[1]["output"], does[1]["gap"]) == (1, 1, 0)
    assert silent[1]["probe"] == 1
    assert silent[1]["gap_ci"][0] > 0.5
    assert silent[1]["selectivity_ci"][0] > 0.4
    assert does[0]["probe"] < 0.6, "before layer 1 has looked, nothing is known"


def test_a_ring_digit_closes_the_second_time(tmp_path):
    subject = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("esm-rotary"), tmp_path))
    batch = subject.tokenize(["C1CC1CC1CC1"])
    assert places(subject, batch, CLOSES) == [(5, 0), (11, 0)]
    states, logits = states_at(subject, batch, [5, 11])
    assert states.shape == (subject.n_layers, 2, subject.d_model)
    masked = subject.prepare_prediction(batch, 11)[0]
    np.testing.assert_allclose(logits[1], subject.run(masked).logits[0, 11].numpy(), rtol=0, atol=1e-5)
