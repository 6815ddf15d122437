"""The circuit that was written into the weights, looked for: see `handbuilt`."""

import pytest
import torch

import tiny
from handbuilt import DECOYS, POSITION, READER, SOURCE
from handbuilt import handbuilt as make
from isotrace.attribution.circuits.choice import choose_circuit
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.influence import prune, scores, total_effects
from isotrace.attribution.verification import circuit_effects
from isotrace.subjects.targets import parse_target


@pytest.fixture(scope="module")
def handbuilt(tmp_path_factory):
    """(subject, exact dictionary, batch, target), float32."""
    subject, dictionary = make(tmp_path_factory.mktemp("handbuilt") / "esm")
    batch = subject.tokenize(["CNO"])
    return subject, dictionary, batch, parse_target("probe:v", subject, batch)


@pytest.fixture(scope="module")
def traced(handbuilt):
    subject, dictionary, batch, target = handbuilt
    framing = frame(subject, dictionary, batch, target)
    return framing, build_graph(framing, max_features=100, batch_size=4)


def at(graph, node):
    return graph.feature_nodes.tolist().index(node)


def test_the_dictionary_is_exact_and_the_decoys_are_active(traced):
    framing, graph = traced
    assert float(framing.errors.abs().max()) < 1e-6
    assert sorted(graph.feature_nodes.tolist()) == sorted([SOURCE, READER, *DECOYS])
    activation = {tuple(n): float(a) for n, a in zip(graph.feature_nodes.tolist(), graph.activations, strict=True)}
    assert activation[tuple(DECOYS[0])] == pytest.approx(activation[tuple(SOURCE)], rel=1e-5)
    assert min(activation.values()) > 8


def test_graph_and_pruning_recover_exactly_the_circuit(traced):
    _, graph = traced
    n = graph.n_features
    strongest = float(graph.matrix.abs().max())
    expected = {(at(graph, READER), at(graph, SOURCE)), (graph.target, at(graph, READER))}
    decoy_input = (at(graph, DECOYS[1]), at(graph, SOURCE))
    # the second decoy really reads u, all other feature edges are zero
    found = (graph.matrix[:, :n].abs() > 1e-5 * strongest).nonzero().tolist()
    assert {tuple(edge) for edge in found} == expected | {decoy_input}
    kept = prune(graph, 0.95, 0.99)
    assert sorted(graph.feature_nodes[kept.nodes[:n]].tolist()) == sorted([SOURCE, READER])
    assert not bool(kept.nodes[graph.errors].any())
    assert {tuple(edge) for edge in kept.edges[:, :n].nonzero().tolist()} == expected
    tokens = {(row, graph.position_of(graph.tokens.start + column))
              for row, column in kept.edges[:, graph.tokens].nonzero().tolist()}  # fmt: skip
    assert tokens == {(at(graph, SOURCE), POSITION["C"]), (at(graph, READER), POSITION["O"])}
    assert scores(graph).replacement == pytest.approx(1, abs=1e-5)


def test_the_edge_through_attention_has_the_size_written_into_the_weights(traced):
    """u has length a·0.1 at C; value and output pass on 1.4/5 of its normalised size; the reader's norm and
    weight 12 do the rest."""
    _, graph = traced
    source = float(graph.activations[at(graph, SOURCE)])
    assert source == pytest.approx(10 * 4 - 20, rel=1e-4)
    length = (1 + (0.1 * source) ** 2) ** 0.5
    moved = 1.4 / 5 * 4 * (0.1 * source) / length
    normed = 4 / (1 + moved**2) ** 0.5
    edge = float(graph.matrix[at(graph, READER), at(graph, SOURCE)])
    assert edge == pytest.approx(12 * moved * normed, rel=1e-3)
    assert float(graph.activations[at(graph, READER)]) == pytest.approx(edge + 8 * normed - 45, rel=1e-3)


def test_the_circuit_is_the_cause(handbuilt, traced):
    subject, dictionary, batch, target = handbuilt
    _, graph = traced
    clean = float(target.value(subject, batch, subject.run(batch).final))
    sets = [torch.tensor([node]) for node in (SOURCE, READER, *DECOYS)]
    values = tiny.ablated(subject, dictionary, batch, target, sets, complement=False, ablation="zero").tolist()
    assert clean > 0.1
    assert values[:2] == pytest.approx([0, 0], abs=1e-5), "either half of the circuit is needed"
    assert values[2:] == pytest.approx([clean, clean], abs=1e-5), "the decoys are not"
    effects = total_effects(graph)
    assert abs(float(effects[at(graph, DECOYS[0])])) + abs(float(effects[at(graph, DECOYS[1])])) < 1e-5


def test_the_circuit_alone_is_the_model_and_that_of_decoys_is_not(handbuilt, traced):
    subject, _, _, target = handbuilt
    framing, _ = traced
    circuit = torch.tensor([SOURCE, READER])
    found = circuit_effects(subject, framing, target, circuit, n_controls=3, ablation="zero", seed=0)
    assert found.full > 0.1
    assert (found.value, found.removed) == (pytest.approx(found.full, abs=1e-5), pytest.approx(0, abs=1e-5))
    assert (found.kept, found.lost) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-4))
    # each layer has one other active feature, so every control is the two decoys
    assert found.control_values == pytest.approx([0, 0, 0], abs=1e-5)
    assert found.control_removed == pytest.approx([found.full] * 3, abs=1e-5)
    assert found.reason is None


def test_the_circuit_is_found(handbuilt, traced):
    subject, _, _, target = handbuilt
    framing, graph = traced
    settings = {"shares": (0.25, 0.5, 1.0), "tolerance": 0.1, "ablation": "zero"}
    found = choose_circuit(subject, framing, target, graph.feature_nodes, **settings)
    assert found.sizes == (1, 2, 4)
    assert found.values.tolist() == pytest.approx([0, found.values[2], found.values[2]], abs=1e-5)
    assert sorted(found.circuit.tolist()) == sorted([SOURCE, READER])
