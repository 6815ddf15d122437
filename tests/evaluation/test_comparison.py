"""Several dictionaries at once give the numbers each gives alone, and their differences are paired."""

import copy
import math

import numpy as np
import pytest
import torch

import tiny
from isotrace.base.errors import DictionaryError, InputError, RunError
from isotrace.dictionaries.build import build, configure
from isotrace.evaluation.comparison import FITTING_SHARE, compare, pareto
from isotrace.evaluation.fidelity import MODES, evaluate
from isotrace.stats.splits import by_hash

SEQUENCES = tiny.MOLECULES * 2
OPTIONS = {"mask_rate": 0.3, "n_bootstrap": 60}


@pytest.fixture
def pair(relu_subject):
    """An exact dictionary and one that writes the opposite, too strongly."""
    weak = tiny.exact_dictionary(relu_subject)
    for weight in weak.W_dec:
        weight.data.mul_(-3)
    return {"exact": tiny.exact_dictionary(relu_subject), "weak": weak}


@pytest.fixture
def plain(relu_subject, pair):
    return compare(relu_subject, pair, SEQUENCES, controls=False, **OPTIONS)


def test_numbers_are_those_of_each_dictionary_alone(relu_subject, pair, plain):
    for entry in plain.dictionaries:
        alone = evaluate(relu_subject, pair[entry["name"]], SEQUENCES, **OPTIONS)
        shared = set(alone) - {"clean", "n_sequences", "n_tokens", "n_predicted"}
        assert {key: entry[key] for key in shared} == {key: alone[key] for key in shared}
        assert plain.clean == alone["clean"]
        assert (plain.n_sequences, plain.n_tokens, plain.n_predicted) == (
            len(SEQUENCES),
            alone["n_tokens"],
            alone["n_predicted"],
        )


def test_a_dictionary_on_other_sites_keeps_its_own_baseline(relu_subject, pair):
    """Its ablated subject is another one, so its difference is not given, and it is not in the others' Pareto set."""
    sites = {"hookpoint_in": "layers.{}.resid_post", "hookpoint_out": "layers.{}.resid_post"}
    other = build(configure(relu_subject, "sae", layers=[1], n_features=40, k=30, **sites), seed=0)
    found = compare(relu_subject, pair | {"other": other}, SEQUENCES, controls=False, **OPTIONS)
    alone = evaluate(relu_subject, other, SEQUENCES, **OPTIONS)
    entry = found.dictionaries[2]
    assert entry["ablated"] == alone["ablated"] != found.dictionaries[0]["ablated"]
    assert entry["free_running"] == alone["free_running"]
    assert entry["paired"] is None
    assert "other" in found.pareto


def test_differences_are_paired(plain):
    exact, weak = plain.dictionaries
    for mode in MODES:
        own = exact["paired"][mode]
        assert all(score == {"difference": 0, "ci": (0, 0)} for score in own.values())
        for score, found in weak["paired"][mode].items():
            assert found["difference"] == pytest.approx(weak[mode][score] - exact[mode][score], abs=1e-9)
            assert found["ci"][0] <= found["difference"] <= found["ci"][1]
        assert weak["paired"][mode]["loss_recovered"]["ci"][1] < 0


def test_the_paired_interval_is_that_of_a_plain_loop(relu_subject, pair, plain):
    """Per draw: evaluate both on the drawn sequences. The exact one recovers 1 in every draw, so the interval of the
    difference is the weak one's own, less one."""
    weak = plain.dictionaries[1]
    low, high = weak["paired"]["free_running"]["loss_recovered"]["ci"]
    assert [low, high] == pytest.approx([end - 1 for end in weak["free_running"]["ci"]], abs=1e-3)
    # two equal dictionaries never differ, however uncertain each is
    twins = {"one": pair["weak"], "two": copy.deepcopy(pair["weak"])}
    found = compare(relu_subject, twins, SEQUENCES, controls=False, **OPTIONS)
    assert found.dictionaries[1]["paired"]["free_running"]["loss_recovered"]["ci"] == (0, 0)
    assert found.dictionaries[1]["free_running"]["ci"][1] - found.dictionaries[1]["free_running"]["ci"][0] > 0.01


def test_controls_are_evaluated_on_sequences_they_were_not_fitted_on(relu_subject, pair):
    held, fitting = by_hash(SEQUENCES, FITTING_SHARE)
    assert fitting
    assert not set(held) & set(fitting)
    assert sorted(held + fitting) == sorted(SEQUENCES)
    found = compare(relu_subject, pair, SEQUENCES, **OPTIONS)
    assert found.n_sequences == len(held)
    assert found.fitting["n_sequences"] == len(fitting)
    assert [control["name"] for control in found.controls] == ["random", "pca", "neurons", "shuffled"]
    assert all(set(control) == set(found.dictionaries[0]) | {"reason"} for control in found.controls)
    alone = evaluate(relu_subject, pair["weak"], held, **OPTIONS)
    assert found.dictionaries[1]["free_running"] == alone["free_running"]
    frame = found.to_frame()
    assert frame["kind"].to_list() == ["dictionary"] * 2 + ["control"] * 4
    assert frame["free_running_loss_recovered"][0] == found.dictionaries[0]["free_running"]["loss_recovered"]
    assert frame.filter(frame["pareto"])["name"].to_list() == found.pareto


def test_a_control_that_does_as_well_is_named(relu_subject, pair):
    found = compare(relu_subject, {"weak": pair["weak"]}, SEQUENCES, **OPTIONS)
    controls = {control["name"]: control for control in found.controls}
    assert (
        controls["neurons"]["free_running"]["loss_recovered"] > found.dictionaries[0]["free_running"]["loss_recovered"]
    )
    assert any("control neurons" in warning for warning in found.warnings)


def entry(name, l0, loss, layers=(0,)):
    return {
        "name": name,
        "l0": l0,
        "free_running": {"loss_recovered": loss},
        "layers": layers,
        "hookpoint_out": "layers.{}.mlp_out",
    }


def test_pareto():
    assert pareto([entry("a", 8, 0.5), entry("b", 16, 0.9), entry("c", 16, 0.8), entry("d", 9, 0.4)]) == ["a", "b"]
    assert pareto([entry("a", 8, 0.5), entry("twin", 8, 0.5)]) == ["a", "twin"]
    assert pareto([entry("a", 8, 0.5), entry("other", 16, 0.4, layers=(1,))]) == ["a", "other"]
    assert pareto([entry("a", 8, math.nan), entry("b", 9, -3.0)]) == ["b"]


def test_where_ablation_changes_nothing_loss_recovered_is_undefined(rotary):
    dead = copy.deepcopy(rotary)
    for layer in range(tiny.N_LAYERS):
        dead.module(dead.family.mlp_out, layer).weight.data.zero_()
    found = evaluate(dead, tiny.random_dictionary(dead), SEQUENCES, **OPTIONS)
    for mode in MODES:
        assert math.isnan(found[mode]["loss_recovered"])
        assert np.isnan(found[mode]["ci"]).all()
        assert "with and without ablation" in found[mode]["note"]
        assert found[mode]["kl"] > 1e-3
    compared = compare(dead, {"it": tiny.random_dictionary(dead)}, SEQUENCES, controls=False, **OPTIONS)
    assert compared.pareto == []
    assert any("with and without ablation" in warning for warning in compared.warnings)


def test_one_sequence_has_no_interval(relu_subject, pair):
    found = evaluate(relu_subject, pair["weak"], ["CC(=O)NCCO"], **OPTIONS)
    assert math.isfinite(found["free_running"]["loss_recovered"])
    assert np.isnan(found["free_running"]["ci"]).all()
    assert "two sequences" in found["free_running"]["note"]


def test_density_counts_every_feature_once(relu_subject):
    dictionary = tiny.random_dictionary(relu_subject)
    dictionary.b_enc[1].data[:4] = -1e6
    found = evaluate(relu_subject, dictionary, SEQUENCES, **OPTIONS)
    histogram = found["density"]["histogram"]
    assert histogram["n_dead"] == round(found["dead_fraction"] * 36) >= 4
    assert sum(histogram["counts"]) + histogram["n_dead"] == 36
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert histogram["edges"][-1] == 0
    norms = dictionary.decoder_norms().flatten().numpy()
    assert found["decoder_norms"]["median"] == pytest.approx(np.median(norms))


def test_what_cannot_be_evaluated_says_so(relu_subject, pair):
    with pytest.raises(DictionaryError, match="no dictionary"):
        compare(relu_subject, {}, SEQUENCES)
    with pytest.raises(InputError, match="too few to fit controls"):
        compare(relu_subject, pair, ["CCO"], **OPTIONS)
    with pytest.raises(InputError, match="masked"):
        compare(relu_subject, pair, SEQUENCES, mask_rate=0.0, controls=False)
    with pytest.raises(InputError, match="0 sequences"):
        evaluate(relu_subject, pair["weak"], [])
    pair["weak"].b_dec[0].data[0] = torch.nan
    with pytest.raises(RunError, match=r"weak: .* not finite"):
        compare(relu_subject, pair, SEQUENCES, controls=False, **OPTIONS)
