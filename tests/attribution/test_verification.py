"""Circuits and their controls where their values are known."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

import tiny
from isotrace.attribution.ablation import ablated, feature_values, first_order
from isotrace.attribution.circuits import choice, halving
from isotrace.attribution.circuits.choice import choose_circuit
from isotrace.attribution.circuits.halving import halved
from isotrace.attribution.circuits.neurons import neuron_effects
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.verification import (
    CircuitEffects,
    circuit_effects,
    matched_controls,
)
from isotrace.dictionaries.features import Features
from isotrace.interventions.components import zero_values
from isotrace.interventions.hookpoints import Neurons


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
def test_the_full_active_set_reproduces_the_model_under_zero_ablation(subject, kind):
    framing, graph, target = traced(subject, kind)
    found = circuit_effects(subject, framing, target, graph.feature_nodes, n_controls=2, ablation="zero", seed=0)
    assert abs(found.full - found.empty) > 1e-2
    assert found.error == pytest.approx(0, abs=1e-4)
    assert found.control_values == pytest.approx([found.full] * 2, abs=1e-4), "controls can only be the same set"


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_every_feature_is_the_model_and_none_is_none(subject, ablation):
    framing, _, target = traced(subject)
    nodes = every_node(framing)
    whole = circuit_effects(subject, framing, target, nodes, n_controls=0, ablation=ablation, seed=0)
    assert abs(whole.full - whole.empty) > 1e-2
    assert (whole.value, whole.removed) == (pytest.approx(whole.full, abs=1e-5), pytest.approx(whole.empty, abs=1e-5))
    assert (whole.kept, whole.lost) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-4))
    none = circuit_effects(subject, framing, target, nodes[:0], n_controls=5, ablation=ablation, seed=0)
    assert (none.value, none.removed) == (pytest.approx(none.empty, abs=1e-5), pytest.approx(none.full, abs=1e-5))
    assert (none.kept, none.lost) == (pytest.approx(0, abs=1e-4), pytest.approx(0, abs=1e-4))
    assert none.reason is not None
    assert len(none.control_values) == len(none.control_removed) == 0


def test_mean_ablation_with_zero_means_is_zero_ablation(rotary):
    framing, graph, target = traced(rotary)
    circuit = graph.feature_nodes[::3]
    arguments = {"n_controls": 2, "seed": 0}
    zero = circuit_effects(rotary, framing, target, circuit, ablation="zero", **arguments)
    mean = circuit_effects(rotary, framing, target, circuit, ablation="mean", **arguments)
    assert abs(zero.value - mean.value) > 1e-3
    framing.dictionary.mean_activation.zero_()
    same = circuit_effects(rotary, framing, target, circuit, ablation="mean", **arguments)
    assert same.value == pytest.approx(zero.value, abs=1e-6)
    assert same.control_removed == pytest.approx(zero.control_removed, abs=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("kind", ["probe", "mask"])
def test_shares_are_nan_when_features_do_nothing_on_any_scale(rotary, kind, scale):
    framing, graph, target = traced(rotary, kind)
    if target.probe is not None:
        probe = replace(target.probe, weight=scale * target.probe.weight)
        target = replace(target, probe=probe)
        framing = frame(rotary, framing.dictionary, framing.batch, target)
    for weight in framing.dictionary.W_dec:
        weight.data.zero_()
    for nodes in (graph.feature_nodes[:1], graph.feature_nodes[:4], graph.feature_nodes):
        found = circuit_effects(rotary, framing, target, nodes, n_controls=1, ablation="zero", seed=0)
        assert math.isnan(found.kept)
        assert math.isnan(found.lost)
        assert found.reason == "ablating every feature leaves the target as it is"


def effects(value=9.0, removed=2.0, controls=(1.0, 2.0, 3.0), full=10.0, empty=0.0, noise=1e-6):
    values = np.array(controls)
    return CircuitEffects(full, empty, value, removed, values, 10 - values, noise)


def test_what_reproduces_is_nearer_than_nothing_and_than_chance():
    assert effects().reason is None
    assert (effects().error, effects().kept, effects().lost) == (1.0, pytest.approx(0.9), pytest.approx(0.8))
    assert effects(value=11.0).kept == pytest.approx(0.9), "what overshoots is no nearer"
    assert "nearer to the model's than the circuit" in effects(value=21.0).reason
    assert "no nearer to the model than 95% of matched random circuits" in effects(controls=[9.5] * 20).reason
    assert effects(controls=[9.5] + [3.0] * 39).reason is None, "one of forty may come nearer"
    assert "leaves the target as it is" in effects(empty=10.0 + 1e-7).reason


def test_no_share_is_given_where_chance_moves_the_target_as_far():
    found = effects(controls=np.linspace(-10, 10, 40))
    assert found.spread == pytest.approx(19, abs=0.1)
    assert math.isnan(found.kept)
    assert math.isnan(found.lost)
    assert found.error == 1.0, "the distance itself is always known"


@pytest.mark.parametrize("kind", ["mask", "probe"])
def test_halving_keeps_what_moves_the_target_most(subject64, kind):
    """With one left to drop, it is the one whose measured ablation is the smallest to first order; sets are nested."""
    framing, graph, target = traced(subject64, kind)
    dictionary = framing.dictionary
    parts = (subject64, Features(dictionary), feature_values(dictionary, "zero"), framing.batch, target)
    nodes = graph.feature_nodes
    sets = halved(*parts, nodes, [1, 3, len(nodes) - 1])
    assert [len(s) for s in sets] == [1, 3, len(nodes) - 1]
    members = [{tuple(n) for n in s.tolist()} for s in (*sets, nodes)]
    assert all(small <= large for small, large in pairwise(members))
    (dropped,) = members[3] - members[2]
    effects = torch.stack(first_order(*parts, nodes)).abs()
    assert float(effects[dropped]) == min(float(effects[tuple(n)]) for n in nodes.tolist())


@pytest.mark.parametrize(
    ("distances", "chosen"),
    [
        ((0.04, 0.3, -0.08, 0.02), 2),  # the first is near by luck: the second, which holds it, is not
        ((-0.09, 0.09, -0.09, 0.09), 0),
        ((0.3, -0.15, 0.4, 0.2), 1),  # none is near from there on: the nearest
        ((0.05, -0.04, 0.08, 0.3), 1),
    ],
)
def test_the_size_is_the_smallest_from_which_on_all_are_near(rotary, monkeypatch, distances, chosen):
    """Of sets that move the target to known distances from the model's, as shares of what all features do."""
    framing, graph, target = traced(rotary)
    full = float(target.value(rotary, framing.batch, framing.frozen.actual.final))
    told = torch.tensor([full - 7, *(full + 7 * d for d in distances)])
    monkeypatch.setattr(choice, "ablated", lambda *given, complement: told if complement else None)
    shares = (0.5, 0.1, 1.0, 0.2)
    found = choose_circuit(rotary, framing, target, graph.feature_nodes, shares=shares, tolerance=0.1, ablation="zero")
    assert found.sizes == tuple(round(graph.n_active * s) for s in sorted(shares))
    assert len(found.circuit) == found.sizes[chosen]
    assert found.values == pytest.approx(told[1:].numpy())


def test_effects_are_taken_anew_in_every_round(rotary, monkeypatch):
    """Of 40 candidates the last look strongest, of those the first, then the last again."""
    rounds = []

    def told(*given):
        rounds.append(len(given[-1]))
        strength = torch.arange(40.0) if len(rounds) % 2 else -1.0 / torch.arange(1, 41)
        return (strength[None],)

    monkeypatch.setattr(halving, "first_order", told)
    nodes = torch.tensor([[0, 0, i] for i in range(40)])
    three, eight = halved(rotary, Neurons(), (), None, None, nodes, [3, 8])  # pyright: ignore[reportArgumentType]
    assert rounds == [40, 20, 10, 8, 4]
    assert sorted(eight[:, 2].tolist()) == [*range(22, 30)]
    assert sorted(three[:, 2].tolist()) == [23, 24, 25]


@pytest.mark.parametrize("kept", [False, True])
def test_first_order_effects_are_derivatives(subject64, kept):
    framing, graph, target = traced(subject64, "probe", window=2)
    dictionary, nodes = framing.dictionary, graph.feature_nodes
    reference = feature_values(dictionary, "mean")
    parts = subject64, Features(dictionary)
    found = first_order(*parts, reference, framing.batch, target, nodes[::2] if kept else None)
    outside = {tuple(n) for n in nodes[1::2].tolist()} if kept else set()
    for node in nodes[::6].tolist():
        layer, position, feature = node
        activation = float(framing.active.values[layer, position][framing.active.indices[layer, position] == feature])
        h = 3e-3  # parts of the subject round to float32

        def value(shift, seen, layer=layer, position=position, feature=feature):
            def edit(at, values):
                values = values.clone()
                if kept:
                    inside = torch.zeros(values.shape[1:3], dtype=torch.bool)
                    here = nodes[::2][nodes[::2][:, 0] == at]
                    inside[here[:, 1], here[:, 2]] = True
                    values = torch.where(inside[..., None], values, reference[at].to(values))
                if at == layer:
                    values[0, position, feature, 0] += shift
                    seen.append(float(values[0, position, feature, 0]) - shift)
                return values

            with torch.no_grad(), Features(dictionary).edited(subject64, edit):
                return float(
                    target.value(subject64, framing.batch, subject64.hidden(framing.batch.ids, framing.batch.mask))
                )

        seen = []
        slope = (value(h, seen) - value(-h, [])) / (2 * h)
        base = float(reference[layer][feature, 0])
        assert float(found[layer][position, feature]) == pytest.approx((seen[0] - base) * slope, rel=2e-2, abs=1e-4)
        if not kept:
            assert seen[0] == pytest.approx(activation)
    assert all(float(found[layer][p, f]) == 0 for layer, p, f in outside)


def test_neurons_are_chosen_by_the_same_rule_and_all_of_them_are_the_model(rotary):
    framing, _, target = traced(rotary)
    means = zero_values(rotary, Neurons())
    total = framing.n_tokens * sum(len(m) for m in means)
    clean = float(target.value(rotary, framing.batch, framing.frozen.actual.final))
    whole = neuron_effects(rotary, framing, target, means, total)
    assert (whole.n, whole.value) == (total, pytest.approx(clean, abs=1e-5))
    some = neuron_effects(rotary, framing, target, means, 7)
    assert some.n == 7
    assert some.empty == pytest.approx(whole.empty, abs=1e-6)
    everything = torch.cat([torch.cartesian_prod(torch.tensor([layer]), torch.arange(framing.n_tokens),
                                                 torch.arange(len(m))) for layer, m in enumerate(means)])  # fmt: skip
    (chosen,) = halved(rotary, Neurons(), means, framing.batch, target, everything, [7])
    values = ablated(rotary, Neurons(), means, framing.batch, target, [chosen], complement=True)
    assert some.value == pytest.approx(float(values), abs=1e-5)
