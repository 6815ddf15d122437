"""Controls, sufficiency and necessity where their values are known."""

import math

import numpy as np
import pytest
import torch

import tiny
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.influence import prune, total_effects
from isotrace.attribution.verification import (
    circuit_effects,
    matched_controls,
    node_effects,
)


def traced(subject, kind="probe", **shape):
    batch, target = tiny.prepared(kind, subject)
    framing = frame(subject, tiny.random_dictionary(subject, **shape), batch, target)
    return framing, build_graph(framing, max_features=10_000), target


def every_node(framing):
    c = framing.dictionary.config
    parts = (torch.arange(n) for n in (c.n_layers, framing.n_tokens, c.n_features))
    return torch.cartesian_prod(*parts)


def layer_counts(nodes):
    return torch.bincount(nodes[:, 0], minlength=tiny.N_LAYERS).tolist()


def test_controls_match_the_circuit(subject):
    framing, graph, _ = traced(subject)
    active = {tuple(n) for n in graph.feature_nodes.tolist()}
    circuit = graph.feature_nodes[torch.randperm(graph.n_features, generator=torch.Generator().manual_seed(0))[:12]]
    controls = matched_controls(framing, framing.dictionary.density, circuit, 20, seed=0)
    assert len(controls) == 20
    for control in controls:
        nodes = {tuple(n) for n in control.tolist()}
        assert layer_counts(control) == layer_counts(circuit)
        assert len(nodes) == len(circuit), "no node twice"
        assert nodes <= active
        assert not nodes & {tuple(n) for n in circuit.tolist()}
    assert len({tuple(map(tuple, sorted(c.tolist()))) for c in controls}) > 10, "the draws differ"
    again = matched_controls(framing, framing.dictionary.density, circuit, 20, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(controls, again, strict=True))


def test_controls_are_nearest_in_frequency(rotary):
    """With one neighbour, each control is the node whose log density is closest."""
    framing, graph, _ = traced(rotary)
    density = framing.dictionary.density
    for node in graph.feature_nodes[::6]:
        (control,) = matched_controls(framing, density, node[None], 1, seed=1, neighbours=1)
        others = graph.feature_nodes[(graph.feature_nodes[:, 0] == node[0]) & (graph.feature_nodes != node).any(1)]
        distance = (density[others[:, 0], others[:, 2]].log() - density[node[0], node[2]].log()).abs()
        found = (density[control[0, 0], control[0, 2]].log() - density[node[0], node[2]].log()).abs()
        assert float(found) == pytest.approx(float(distance.min()), abs=1e-6)


def test_controls_fall_back_on_circuit_nodes_when_a_layer_has_too_few_others(rotary):
    framing, graph, _ = traced(rotary)
    circuit = graph.feature_nodes[graph.feature_nodes[:, 0] == 1]
    for control in matched_controls(framing, framing.dictionary.density, circuit, 3, seed=0):
        assert sorted(control.tolist()) == sorted(circuit.tolist()), "the whole layer is all there is"


@pytest.mark.parametrize("kind", ["mask", "diff", "probe"])
def test_the_full_active_set_is_sufficient_under_zero_ablation(subject, kind):
    framing, graph, target = traced(subject, kind)
    found = circuit_effects(subject, framing, target, graph.feature_nodes, n_controls=2, ablation="zero", seed=0)
    assert abs(found.full - found.empty) > 1e-2
    assert found.sufficiency == pytest.approx(1, abs=1e-4)
    assert found.control_sufficiency == pytest.approx([1, 1], abs=1e-4), "controls can only be the same set"


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_every_feature_is_sufficient_and_necessary_and_none_is_neither(subject, ablation):
    framing, _, target = traced(subject)
    nodes = every_node(framing)
    full = circuit_effects(subject, framing, target, nodes, n_controls=0, ablation=ablation, seed=0)
    assert abs(full.full - full.empty) > 1e-2
    assert (full.sufficiency, full.necessity) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-4))
    none = circuit_effects(subject, framing, target, nodes[:0], n_controls=5, ablation=ablation, seed=0)
    assert (none.sufficiency, none.necessity) == (pytest.approx(0, abs=1e-4), pytest.approx(0, abs=1e-4))
    assert len(none.control_sufficiency) == len(none.control_necessity) == 0


def test_mean_ablation_with_zero_means_is_zero_ablation(rotary):
    framing, graph, target = traced(rotary)
    circuit = graph.feature_nodes[::3]
    arguments = {"n_controls": 2, "seed": 0}
    zero = circuit_effects(rotary, framing, target, circuit, ablation="zero", **arguments)
    mean = circuit_effects(rotary, framing, target, circuit, ablation="mean", **arguments)
    assert abs(zero.sufficiency - mean.sufficiency) > 1e-3
    framing.dictionary.mean_activation.zero_()
    same = circuit_effects(rotary, framing, target, circuit, ablation="mean", **arguments)
    assert same.sufficiency == pytest.approx(zero.sufficiency, abs=1e-6)
    assert same.control_necessity == pytest.approx(zero.control_necessity, abs=1e-6)


def test_sufficiency_is_nan_when_features_do_nothing(rotary):
    framing, graph, target = traced(rotary)
    for weight in framing.dictionary.W_dec:
        weight.data.zero_()
    found = circuit_effects(rotary, framing, target, graph.feature_nodes[:4], n_controls=1, ablation="zero", seed=0)
    assert math.isnan(found.sufficiency)
    assert math.isnan(found.necessity)
    assert np.isnan(found.control_sufficiency).all()


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_node_effects(subject64, ablation):
    """With all active features in the graph the prediction is the frozen model's effect."""
    framing, graph, target = traced(subject64, "mask", window=2)
    pruned = prune(graph, 0.8, 0.98)
    found = node_effects(subject64, framing, graph, pruned, target, n_nodes=16, ablation=ablation, seed=0)
    assert len(found.nodes) == 16 == len(set(found.nodes.tolist()))
    ranked = pruned.influence[: graph.n_features].argsort(descending=True)
    assert found.nodes[:8].tolist() == ranked[:8].tolist()
    torch.testing.assert_close(found.predicted, found.frozen, rtol=1e-7, atol=1e-9)
    assert float(found.frozen.abs().max()) > 1e-3
    assert float((found.free_running - found.frozen).abs().max()) > 1e-4, "the real subject is not linear"
    if ablation == "zero":
        torch.testing.assert_close(found.predicted, total_effects(graph)[found.nodes])
    few = node_effects(subject64, framing, graph, pruned, target, n_nodes=10_000, ablation=ablation, seed=0)
    assert sorted(few.nodes.tolist()) == list(range(graph.n_features))
