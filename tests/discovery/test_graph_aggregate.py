"""The aggregate against the mean of graphs built one by one, added up in plain dictionaries."""

from collections import defaultdict

import pytest
import torch

import tiny
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.influence import influence, total_effects
from isotrace.base.errors import InputError, SubjectError
from isotrace.dictionaries.features import Features
from isotrace.discovery.methods import Problem, method_of
from isotrace.discovery.methods.graph_aggregate import aggregate
from isotrace.interventions import Heads, zero_values

INPUTS = ("CCOCC", "OCCN", "c1cc[nH]c1")
N_FEATURES = 12


@pytest.fixture
def setup(rotary64):
    """(subject, dictionary, target, graphs of INPUTS)."""
    dictionary, target = tiny.random_dictionary(rotary64), tiny.make_target("probe", rotary64, rotary64.tokenize(["C"]))
    graphs = [
        build_graph(frame(rotary64, dictionary, rotary64.tokenize([text]), target), max_features=10_000)
        for text in INPUTS
    ]
    return rotary64, dictionary, target, graphs


def test_the_aggregate_is_the_mean_of_the_graphs(setup):
    subject, _, _, graphs = setup
    found = aggregate(iter(graphs), subject.n_layers, N_FEATURES)
    effect, unsigned, shares, edges = (defaultdict(float) for _ in range(4))
    for graph in graphs:
        nodes = [(layer, feature) for layer, _, feature in graph.feature_nodes.tolist()]
        effects, influences = total_effects(graph).tolist(), influence(graph.matrix, graph.target).tolist()
        own, passing = defaultdict(float), defaultdict(float)
        for at, node in enumerate(nodes):
            own[node] += effects[at]
            shares[node] += influences[at] / 3
            for into, receiver in enumerate(nodes):
                weight = float(graph.matrix[into, at])
                if weight:
                    passing[node + receiver] += weight * effects[into] / float(graph.activations[into])
        for node, value in own.items():
            effect[node] += value / 3
            unsigned[node] += abs(value) / 3
        for pair, value in passing.items():
            edges[pair] += value / 3
    assert (found.n_graphs, found.edges_dropped) == (3, 0)
    assert int((found.count > 0).sum()) == len(effect)
    for (layer, feature), value in effect.items():
        assert float(found.effect[layer, feature]) == pytest.approx(value, abs=1e-10)
        assert float(found.unsigned[layer, feature]) == pytest.approx(unsigned[layer, feature], abs=1e-10)
        assert float(found.influence[layer, feature]) == pytest.approx(shares[layer, feature], abs=1e-10)
    assert {tuple(pair) for pair in found.edges.tolist()} == set(edges)
    for pair, value in zip(found.edges.tolist(), found.edge_effect.tolist(), strict=True):
        assert value == pytest.approx(edges[tuple(pair)], abs=1e-10)
    best = found.ranking("effect")[0].tolist()
    assert effect[tuple(best)] == max(effect.values())
    assert len(found.ranking("unsigned")) == len(effect)


def test_a_total_effect_is_the_direct_one_and_what_passes_the_edges(setup):
    subject, _, _, graphs = setup
    found = aggregate(graphs[:1], subject.n_layers, N_FEATURES)
    graph = graphs[0]
    expected = found.effect.clone()
    for (layer, feature, _, _), value in zip(found.edges.tolist(), found.edge_effect.tolist(), strict=True):
        expected[layer, feature] -= value
    direct = torch.zeros_like(expected)
    layer, _, feature = graph.feature_nodes.unbind(1)
    row = graph.matrix[graph.target, : graph.n_features].double()
    direct.index_put_((layer, feature), row, accumulate=True)
    assert torch.allclose(expected, direct, rtol=0, atol=1e-10)


def test_edges_stay_within_bounds_and_the_strongest_survive(setup):
    subject, _, _, graphs = setup
    every = aggregate(graphs, subject.n_layers, N_FEATURES)
    few = aggregate(graphs, subject.n_layers, N_FEATURES, max_edges=40)
    assert len(few.edges) == 40 < len(every.edges)
    assert few.edges_dropped > 0
    assert torch.equal(few.effect, every.effect)
    assert few.edges[:3].tolist() == every.edges[:3].tolist()
    with pytest.raises(InputError, match="no graph to aggregate"):
        aggregate([], subject.n_layers, N_FEATURES)


def test_the_method_scores_every_sequence_of_a_batch_by_its_own_graph(setup):
    """With zeros as reference the score is the total effect; the probe is linear, so its gradient is exact."""
    subject, dictionary, target, graphs = setup
    mediator, batch = Features(dictionary), subject.tokenize([*INPUTS])
    problem = Problem(
        subject, mediator, batch, lambda b, final: target.value(subject, b, final), zero_values(subject, mediator)
    )
    found = method_of("graph_aggregate")(problem, max_features=10_000)
    for row, graph in enumerate(graphs):
        expected = aggregate([graph], subject.n_layers, N_FEATURES).effect
        assert torch.allclose(torch.stack([v[row, 0] for v in found.values]), expected, rtol=0, atol=1e-9)
    assert found.cost == pytest.approx(sum(2 * graph.n_features + 4 for graph in graphs) / 3)


def test_a_reference_takes_away_its_share_of_the_effect(setup):
    subject, dictionary, target, graphs = setup
    mediator, batch = Features(dictionary), subject.tokenize([INPUTS[0]])
    reference = tuple(torch.rand(N_FEATURES, 1) for _ in range(subject.n_layers))
    problem = Problem(subject, mediator, batch, lambda b, final: target.value(subject, b, final), reference)
    found = torch.stack([v[0, 0] for v in method_of("graph_aggregate")(problem).values])
    expected, graph = torch.zeros_like(found), graphs[0]
    for (layer, _, feature), a, effect in zip(
        graph.feature_nodes.tolist(), graph.activations.tolist(), total_effects(graph).tolist(), strict=False
    ):
        expected[layer, feature] += effect * (a - float(reference[layer][feature, 0])) / a
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)


def test_dictionaries_it_cannot_linearise_are_refused(rotary, double):
    batch = rotary.tokenize(["CCO"])
    skip = tiny.random_dictionary(rotary, "skip_transcoder")
    sae = tiny.random_dictionary(rotary, "sae")
    plain = tiny.random_dictionary(rotary)
    for mediator, reason in (
        (Heads(), "give the mediator feature"),
        (Features(skip), "without a skip path"),
        (Features(sae), "its features replace MLPs"),
        (Features(plain, errors="drop"), "keeps errors"),
    ):
        with pytest.raises(SubjectError, match=reason):
            method_of("graph_aggregate")(Problem(rotary, mediator, batch, lambda b, final: final.sum((1, 2)), ()))
