"""A subject whose weights were written by hand, so that its circuit is known before it is looked for.

Eight orthogonal zero-mean directions of a 16-dimensional stream: C, N, O, other tokens, u, moved, v, w.

    embedding   every token writes its own direction
    layer 0     MLP neuron 0: C → u.  neuron 1 (decoy): N → w, with the same activation
    layer 1     attention is uniform and copies u into `moved` at every position
                MLP neuron 0: O and moved → v.  neuron 1 (decoy): u → w
    probe       mean of v

The circuit of "CNO" is therefore: token C → (0, C, 0) → attention → (1, O, 0) ← token O, and (1, O, 0) → probe.
Neurons are so far above or below zero that GELU is ReLU, so a per-layer dictionary with the neurons as features
is exact.
"""

import pytest
import torch
from transformers import EsmConfig, EsmForMaskedLM

import tiny
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.influence import prune, scores, total_effects
from isotrace.attribution.interventions import ablate_in_subject
from isotrace.attribution.verification import circuit_effects
from isotrace.subjects.probe import Probe
from isotrace.subjects.targets import Target

DIRECTIONS = ("C", "N", "O", "other", "u", "moved", "v", "w")
D, NEURONS = 16, 4
POSITION = {"C": 1, "N": 2, "O": 3}
SOURCE, READER = [0, POSITION["C"], 0], [1, POSITION["O"], 0]
DECOYS = [[0, POSITION["N"], 1], [1, POSITION["C"], 1]]


def direction(name):
    """Unit length and zero mean, so that a LayerNorm rescales it and nothing else."""
    vector = torch.zeros(D)
    at = 2 * DIRECTIONS.index(name)
    vector[at], vector[at + 1] = 2**-0.5, -(2**-0.5)
    return vector


def handbuilt_model():
    config = EsmConfig(
        vocab_size=len(tiny.tokenizer()), hidden_size=D, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=NEURONS, max_position_embeddings=32, pad_token_id=1, mask_token_id=4,
        token_dropout=False, position_embedding_type="rotary", emb_layer_norm_before=False,
    )  # fmt: skip
    model = EsmForMaskedLM(config)
    for name, parameter in model.named_parameters():
        parameter.data.fill_(float("norm" in name.lower() and name.endswith("weight")))
    vocabulary = tiny.tokenizer().get_vocab()
    for token, index in vocabulary.items():
        model.esm.embeddings.word_embeddings.weight.data[index] = direction(token if token in POSITION else "other")
    first, second = model.esm.encoder.layer
    # queries and keys are zero: attention is uniform
    second.attention.self.value.weight.data.copy_(torch.outer(direction("u"), direction("u")))
    second.attention.output.dense.weight.data.copy_(1.4 * torch.outer(direction("moved"), direction("u")))
    # an input token alone has length 4 behind the norm
    write(first, 0, 10 * direction("C"), -20, 0.1 * direction("u"))
    write(first, 1, 10 * direction("N"), -20, 0.1 * direction("w"))
    write(second, 0, 12 * direction("moved") + 8 * direction("O"), -45, 0.1 * direction("v"))
    write(second, 1, 10 * direction("u"), -16, 0.1 * direction("w"))
    for layer in (first, second):
        layer.intermediate.dense.bias.data[2:] = -30
    return model


def write(layer, neuron, reads, bias, writes):
    layer.intermediate.dense.weight.data[neuron] = reads
    layer.intermediate.dense.bias.data[neuron] = bias
    layer.output.dense.weight.data[:, neuron] = writes


@pytest.fixture(scope="module")
def handbuilt(tmp_path_factory):
    """(subject, exact dictionary, batch, target), float32."""
    subject = tiny.load_tiny(tiny.save_subject(handbuilt_model(), tmp_path_factory.mktemp("handbuilt") / "esm"))
    dictionary = tiny.exact_dictionary(subject)
    dictionary.mean_activation.zero_()
    sha, ones = subject.files.weights_sha256, [1.0] * D
    probe = Probe("isotrace-probe", 1, "v", "mean of v", "regression", "1", sha, [0.0] * D, ones,
                  direction("v").tolist(), 0.0)  # fmt: skip
    return subject, dictionary, subject.tokenize(["CNO"]), Target("probe", "probe:v", "mean of v", "1", probe=probe)


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
    values = ablate_in_subject(subject, dictionary, batch, target, sets, complement=False, ablation="zero").tolist()
    assert clean > 0.1
    assert values[:2] == pytest.approx([0, 0], abs=1e-5), "either half of the circuit is needed"
    assert values[2:] == pytest.approx([clean, clean], abs=1e-5), "the decoys are not"
    effects = total_effects(graph)
    assert abs(float(effects[at(graph, DECOYS[0])])) + abs(float(effects[at(graph, DECOYS[1])])) < 1e-5


def test_sufficiency_and_necessity_are_one_and_those_of_decoys_zero(handbuilt, traced):
    subject, _, _, target = handbuilt
    framing, _ = traced
    circuit = torch.tensor([SOURCE, READER])
    found = circuit_effects(subject, framing, target, circuit, n_controls=3, ablation="zero", seed=0)
    assert (found.sufficiency, found.necessity) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-4))
    # each layer has one other active feature, so every control is the two decoys
    assert found.control_sufficiency == pytest.approx([0, 0, 0], abs=1e-4)
    assert found.control_necessity == pytest.approx([0, 0, 0], abs=1e-4)
