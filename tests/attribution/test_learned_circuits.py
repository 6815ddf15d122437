"""Circuits by a learned mask, and the ensemble that it is learned on."""

import pytest
import torch

import tiny
from handbuilt import READER, SOURCE, handbuilt
from isotrace.attribution.ablation import ablated, feature_values
from isotrace.attribution.circuits import learned
from isotrace.attribution.circuits.choice import choose_circuit
from isotrace.attribution.circuits.ensemble import ensemble
from isotrace.attribution.circuits.learned import straight_through
from isotrace.attribution.circuits.masked import Masked
from isotrace.attribution.circuits.neurons import neuron_effects
from isotrace.attribution.graph import build_graph, frame
from isotrace.dictionaries.features import Features
from isotrace.interventions import Neurons, zero_values
from isotrace.subjects.targets import parse_target


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_a_masked_run_is_the_ablation_and_its_gradient_that_of_dense_edits(subject64, ablation):
    batch, target = tiny.prepared("probe", subject64)
    framing = frame(subject64, tiny.random_dictionary(subject64, window=2), batch, target)
    nodes = build_graph(framing, max_features=10_000).feature_nodes
    parts = subject64, Features(framing.dictionary), feature_values(framing.dictionary, ablation)
    sparse, dense = (Masked(*parts, nodes, framing.n_tokens) for _ in range(2))
    dense.written = None
    assert sparse.written is not None

    def run(masked, mask):
        with masked.by(mask):
            return target.value(subject64, batch, target.hidden(subject64, batch))[0]

    half = torch.arange(len(nodes)) % 2 == 0
    with torch.no_grad():
        alone = run(sparse, half.to(torch.float64))
    expected = ablated(*parts, batch, target, [nodes[half]], complement=True)[0]
    assert float(alone) == pytest.approx(float(expected), rel=1e-5)
    for soft in (torch.linspace(0.1, 0.9, len(nodes), dtype=torch.float64), half.double()):
        mask = soft.requires_grad_(True)
        (one, first), (other, second) = ((v := run(m, mask), torch.autograd.grad(v, mask)[0]) for m in (sparse, dense))
        assert float(one.detach()) == pytest.approx(float(other.detach()), rel=1e-5)
        assert min(float(first[half].abs().max()), float(first[~half].abs().max())) > 1e-4
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_the_threshold_lets_exactly_as_many_through_and_passes_a_gradient():
    scores = torch.tensor([0.3, -1.0, 2.0, 0.1, 0.3]).requires_grad_(True)
    mask = straight_through(scores, 2)
    assert sorted(mask.tolist()) == [0, 0, 0, 1, 1]
    assert mask[2] == 1
    (slopes,) = torch.autograd.grad(mask.sum(), scores)
    assert bool((slopes > 0).all())
    assert slopes.argmin() in (1, 2), "far from the threshold little is passed"


@pytest.mark.parametrize("kind", ["mask", "probe"])
def test_members_differ_at_one_place_and_those_held_out_at_others(subject, kind):
    batch, target = tiny.prepared(kind, subject)
    found = ensemble(subject, batch, target, n_learn=9, n_held_out=6, seed=0)
    assert torch.equal(found.learn.ids[0], batch.ids[0])
    places = []
    for members in (found.learn.ids[1:], found.held_out.ids):
        differs = members != batch.ids
        assert (differs.sum(1) == 1).all()
        places.append({int(row.nonzero()) for row in differs})
    assert not places[0] & places[1]
    fixed = set(torch.nonzero(subject.special(batch.ids[0]))[:, 0].tolist()) | {target.position}
    assert not (places[0] | places[1]) & fixed
    again = ensemble(subject, batch, target, n_learn=9, n_held_out=6, seed=0)
    assert torch.equal(found.held_out.ids, again.held_out.ids)


def test_a_mask_finds_the_circuit_that_was_written_into_the_weights(tmp_path):
    subject, dictionary = handbuilt(tmp_path / "esm", 1.0)
    batch = subject.tokenize(["CNO"])
    target = parse_target("probe:v", subject, batch)
    framing = frame(subject, dictionary, batch, target)
    graph = build_graph(framing, max_features=10)
    settings = {"shares": (0.25, 0.5, 1.0), "tolerance": 0.1, "ablation": "zero", "way": "learned"}
    found = choose_circuit(subject, framing, target, graph.feature_nodes, **settings)
    assert sorted(found.circuit.tolist()) == sorted([SOURCE, READER])


def test_circuits_of_features_and_of_neurons_are_learned_on_the_same_passes(subject, monkeypatch):
    batch, target = tiny.prepared("probe", subject)
    framing = frame(subject, tiny.random_dictionary(subject), batch, target)
    nodes = build_graph(framing, max_features=20).feature_nodes
    seen, real = [], learned.around_of
    monkeypatch.setattr(learned, "around_of", lambda search: seen.append(search) or real(search))
    chosen, means = {"shares": [0.1], "tolerance": 0.1, "ablation": "mean"}, zero_values(subject, Neurons())
    found = []
    for known in ({}, None):
        way = {"way": "learned", "seed": 3, "known": known}
        choice = choose_circuit(subject, framing, target, nodes, **chosen, **way)
        effects = neuron_effects(subject, framing, target, means, len(choice.circuit), **way)
        found.append((choice.circuit.tolist(), choice.values.tolist(), effects))
    assert found[0] == found[1]
    assert len(seen) == 1 + 2
