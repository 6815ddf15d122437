"""ACDC on a subject whose edges were written by hand.

    layer 0   MLP: C → u, and the decoy N → w
    layer 1   head 1 copies u to every position as `moved`; head 0, the decoy, copies N as w
              MLP: O and moved → v, so large that the final norm leaves little of all else
    metric    v, averaged over positions

With N in place of C the copied u is missing: the circuit is embedding → MLP 0 → head 1.1 → MLP 1 → output.
"""

import pytest
import torch
from transformers import EsmConfig, EsmForMaskedLM

import tiny
from isotrace.base.errors import InputError
from isotrace.discovery.edges.circuits import kept
from isotrace.discovery.methods import Problem, method_of
from isotrace.interventions.edges import Edges, component_graph

DIRECTIONS = ("u", "N", "C", "O", "other", "moved", "v", "w")
D = 16
CIRCUIT = {"embedding → mlp 0", "mlp 0 → head 1.1", "head 1.1 → mlp 1", "mlp 1 → output"}


def direction(name):
    """Unit length and zero mean; u and N lie in what different heads give."""
    vector, at = torch.zeros(D), 2 * DIRECTIONS.index(name)
    vector[at], vector[at + 1] = 2**-0.5, -(2**-0.5)
    return vector


def model():
    config = EsmConfig(
        vocab_size=len(tiny.tokenizer()), hidden_size=D, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=4, max_position_embeddings=32, pad_token_id=1, mask_token_id=4, token_dropout=False,
        position_embedding_type="rotary", emb_layer_norm_before=False,
    )  # fmt: skip
    made = EsmForMaskedLM(config)
    for name, parameter in made.named_parameters():
        parameter.data.fill_(float("norm" in name.lower() and name.endswith("weight")))
    for token, index in tiny.tokenizer().get_vocab().items():
        made.esm.embeddings.word_embeddings.weight.data[index] = direction(token if token in "CNO" else "other")
    first, second = made.esm.encoder.layer
    for layer in (first, second):
        layer.intermediate.dense.bias.data.fill_(-30)
    # the first eight dimensions of the values are head 0's, the others head 1's
    slots = {"N": torch.eye(D)[0], "u": torch.eye(D)[8]}
    for name, writes, strength in (("u", "moved", 1.4), ("N", "w", 0.5)):
        second.attention.self.value.weight.data += torch.outer(slots[name], direction(name))
        second.attention.output.dense.weight.data += strength * torch.outer(direction(writes), slots[name])
    for layer, neuron, reads, bias, writes in (
        (first, 0, 10 * direction("C"), -20, 0.1 * direction("u")),
        (first, 1, 10 * direction("N"), -20, 0.1 * direction("w")),
        (second, 0, 12 * direction("moved") + 8 * direction("O"), -45, 5 * direction("v")),
    ):
        layer.intermediate.dense.weight.data[neuron] = reads
        layer.intermediate.dense.bias.data[neuron] = bias
        layer.output.dense.weight.data[:, neuron] = writes
    return made


def metric(batch, final):
    return (final @ direction("v")).mean(-1)


@pytest.fixture(scope="module")
def problem(tmp_path_factory):
    subject = tiny.load_tiny(tiny.save_subject(model(), tmp_path_factory.mktemp("edges") / "esm"))
    return Problem.interchange(subject, Edges(), subject.tokenize(["CNO"]), subject.tokenize(["NNO"]), metric)


def named(problem, chosen):
    graph = component_graph(problem.subject)
    return {graph.name(edge) for edge in torch.nonzero(chosen)[:, 0].tolist()}


def test_the_circuit_written_into_the_weights_is_the_one_kept(problem):
    found = method_of("acdc")(problem, share=0.05)
    assert named(problem, found.values[0] != 0) == CIRCUIT
    assert found.cost < len(found.edges) * component_graph(problem.subject).n_senders


def test_that_circuit_is_sufficient_and_every_edge_of_it_necessary(problem):
    graph = component_graph(problem.subject)
    members = [edge for edge in range(len(graph.edges)) if graph.name(edge) in CIRCUIT]
    keep = torch.zeros(len(members) + 1, len(graph.edges), dtype=torch.bool)
    keep[:, members] = True
    keep[torch.arange(1, len(keep)), members] = False
    full, empty = kept(problem, torch.tensor([[True], [False]]).expand(-1, len(graph.edges)))[:, 0].tolist()
    values = kept(problem, keep)[:, 0].tolist()
    assert full - empty > 0.5
    assert values[0] == pytest.approx(full, rel=0.01)
    assert values[1:] == pytest.approx([empty] * len(members), abs=1e-4)


def test_path_patching_ranks_the_circuit_first(problem):
    """An edge of a chain is needed, so its effect is the whole effect; the decoys have next to none."""
    values = method_of("path_patching")(problem).values[0]
    first = torch.zeros(len(values), dtype=torch.bool)
    first[values.argsort(descending=True)[: len(CIRCUIT)]] = True
    assert named(problem, first) == CIRCUIT
    assert float(values[first].min()) > 20 * float(values[~first].abs().max())


def test_a_share_that_lets_everything_go_leaves_nothing(problem):
    assert not bool(method_of("acdc")(problem, share=2.0).values.any())
    with pytest.raises(InputError, match="give a positive share"):
        method_of("acdc")(problem, share=0.0)
