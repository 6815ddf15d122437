"""What steers along a path that the data never take is flagged, and a true cause is not, however strong."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import tiny
from isotrace.base.errors import InputError
from isotrace.discovery.illusion import illusion
from isotrace.interventions import MLPs, Neurons
from isotrace.interventions.hookpoints import HeadInputs
from isotrace.report.steer.words import of_paths
from isotrace.steering import AddEdit, Edits, GainEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.response.dormant import LEAST, dormancy
from isotrace.steering.trials.judge import Exact
from isotrace.steering.trials.settings import TrialSettings
from isotrace.steering.trials.trial import trial
from isotrace.studies.worlds.planted_steering import contrast_of, planted_world, sequences, share


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return planted_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def contrast(world):
    return contrast_of(world.subject, sequences(96, 3))


def along(direction, layer=1, components=MLPs()):  # noqa: B008
    return Edits((AddEdit(components=components, layer=layer, direction=direction, scale=1.0),))


@pytest.mark.parametrize("alpha", [0.5, 2.0, 8.0])
def test_what_the_subject_uses_is_live_at_any_strength(world, contrast, alpha):
    for name in ("A", "B"):
        (found,) = dormancy(world.subject, along(world.written[name]), contrast, alpha=alpha)
        assert not found.flagged
        assert found.live == pytest.approx((1, 1, 1), abs=0.01)
        assert found.site == "layers.1.mlp_out"
        assert (found.kl > LEAST) == (alpha > 1)


def test_the_dormant_path_is_flagged_where_it_steers_and_only_there(world, contrast):
    (silent,) = dormancy(world.subject, along(world.written["dormant"]), contrast, alpha=0.1)
    (steering,) = dormancy(world.subject, along(world.written["dormant"]), contrast, alpha=1.0)
    assert silent.kl < LEAST
    assert not silent.flagged
    assert steering.flagged
    assert steering.kl > 0.05
    assert steering.live == pytest.approx((0, 0, 0), abs=0.01)
    assert steering.reach > 5  # further than the data go
    (decoy,) = dormancy(world.subject, along(world.written["decoy"]), contrast, alpha=8.0)
    assert decoy.kl < LEAST
    assert not decoy.flagged


def test_what_the_data_never_move_is_flagged(world, contrast):
    """No sequence of this contrast has a residue of B; the direction then only moves when it is steered."""
    texts = ["".join("G" if t in "KRHM" else t for t in e.text) for e in contrast.examples]
    without = contrast_of(world.subject, texts)
    (found,) = dormancy(world.subject, along(world.written["B"]), without, alpha=1.0)
    assert found.reach == np.inf
    assert np.isnan(found.live[0])
    assert found.flagged


def test_every_kind_that_moves_one_place_is_read(world, contrast):
    beta = torch.zeros(world.subject.mlp(1)[0].weight.shape[0])
    beta[world.neurons["A"][1]] = 1.0
    gain = Edits((GainEdit(components=Neurons(), layer=1, beta=beta[:, None]),))
    (found,) = dormancy(world.subject, gain, contrast, alpha=1.0)
    assert found.site == "layers.1.neuron"
    assert found.live == pytest.approx((1, 1, 1), abs=0.01)
    with pytest.raises(InputError, match="no single hookpoint"):
        dormancy(world.subject, along(world.written["A"], 0, HeadInputs()), contrast, alpha=1.0)
    with pytest.raises(InputError, match="no dose"):
        dormancy(world.subject, along(world.written["A"]), contrast)
    few = contrast_of(world.subject, ["DENQACFGIL", "ACFGILPSTV", "DENQACFGILP", "ACFGILPSTVYY"])
    with pytest.raises(InputError, match="three are needed"):
        dormancy(world.subject, along(world.written["A"]), few, alpha=1.0)


def test_it_agrees_with_the_check_of_patched_directions(folders):
    subject = tiny.with_a_dormant_neuron(tiny.load_tiny(folders["esm-rotary"]))
    texts = ["CCOCC", "CNCCO", "OCCCN", "CCCCC", "NCOCC", "CSCCO", "OCSCC", "CCNCS", "CCCCO", "NCCCC", "OCCCO", "CCCCN"]
    contrast = Contrast.of(subject, texts, ["a", "b"] * 6)
    axes = torch.eye(24)
    pairs = [tuple(subject.tokenize([contrast.examples[i].text for i in rows])
                   for rows in (contrast.negative, contrast.positive))]  # fmt: skip

    def metric(batch, final):
        return final[:, 1:-1].mean(1) @ subject.neuron_writes(1)[0][[1, 2]].sum(0)

    for v, flagged in (((axes[0] + axes[1]) / 2**0.5, True), (axes[2], False)):
        (found,) = dormancy(subject, along(v[:, None], 1, Neurons()), contrast, alpha=1.0)
        assert found.flagged == flagged == illusion(subject, "layers.1.neuron", v, pairs, metric).flagged
        assert found.read_share == pytest.approx(0.5 if flagged else 1.0, abs=1e-4)


def test_a_trial_says_it(world, contrast):
    settings = TrialSettings(
        layers=(1,), doses=(0.02,), n_designs=1, n_starts=2, n_development=2, n_twins=0, confounds="free"
    )
    found = trial(world.subject, contrast, settings, components=MLPs(), exact=Exact(share))
    assert [row.flagged for row in found.dormant] == [False] * (found.best is not None)
    (flagged,) = dormancy(world.subject, along(world.written["dormant"]), contrast, alpha=1.0)
    (said,) = of_paths(replace(found, dormant=(flagged,)))
    assert said.startswith("Dormant path at layers.1.mlp_out")
    assert of_paths(replace(found, dormant="too few pairs"))[0].endswith("was not checked: too few pairs")
    assert not of_paths(found)
