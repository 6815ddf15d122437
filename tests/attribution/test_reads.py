"""A target that reads several layers: the same numbers as transformers gives, and a graph that stays exact."""

import pytest
import torch

import tiny
from isotrace.attribution.ablation import ablate_in_frozen, ablated, feature_values, first_order
from isotrace.attribution.graph import build_graph, frame
from isotrace.dictionaries.features import Features
from isotrace.subjects.probe import POOLS, pool
from isotrace.subjects.targets import Target

pytestmark = pytest.mark.every_family


def target_of(subject, how="mean+max"):
    layers = (0, 1, subject.n_layers)
    probe = tiny.random_probe(subject, layers=layers, pool=how)
    return Target("probe", "probe:tiny", "a random probe", "1", probe=probe, place=2 if how == "token" else None)


def test_hidden_states_are_those_of_transformers(subject64):
    if len(subject64.stack_sizes) > 1:
        pytest.skip("transformers lists the hidden states of an encoder and a decoder apart")
    batch = subject64.tokenize([tiny.SMILES, "CC"])
    given = {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "output_hidden_states": True}
    expected = subject64.model.base_model(**given).hidden_states
    found = subject64.hidden(batch.ids, batch.mask, range(len(expected)))
    for one, other in zip(found.split(subject64.d_model, -1), expected, strict=True):
        torch.testing.assert_close(one[batch.mask], other[batch.mask], rtol=1e-10, atol=1e-10)


def test_the_graph_is_complete_and_predicts_the_frozen_model(subject64):
    batch, target = subject64.tokenize([tiny.SMILES]), target_of(subject64)
    dictionary = tiny.random_dictionary(subject64).double()
    framing = frame(subject64, dictionary, batch, target)
    graph = build_graph(framing, max_features=10_000)
    assert graph.completeness_error() < 1e-10
    value = target.value(subject64, batch, target.hidden(subject64, batch))
    assert float(graph.preactivation[graph.target]) == pytest.approx(float(value), rel=1e-9)
    last = int(graph.feature_nodes[:, 0].max())  # nothing but the target stands behind the last layer
    nodes = graph.feature_nodes[graph.feature_nodes[:, 0] == last][:4]
    change = float(value) - ablate_in_frozen(framing, nodes, "zero")
    edges = graph.matrix[graph.target, : graph.n_features][graph.feature_nodes[:, 0] == last][:4]
    torch.testing.assert_close(change.double(), edges.double(), rtol=1e-5, atol=1e-6)


def test_first_order_is_the_slope_of_what_runs(subject64):
    """A small step of the way moves the target by as small a part of the estimate."""
    batch, target = subject64.tokenize([tiny.SMILES]), target_of(subject64, "mean")
    dictionary = tiny.random_dictionary(subject64).double()
    framing = frame(subject64, dictionary, batch, target)
    parts, zero = Features(dictionary), feature_values(dictionary, "zero")
    estimate = torch.stack(first_order(subject64, parts, zero, batch, target))
    layer, position, feature = (int(i) for i in torch.unravel_index(estimate.abs().argmax(), estimate.shape))
    slot = framing.active.indices[layer, position] == feature
    value = framing.active.values[layer, position][slot][0]
    near = tuple(v.clone() for v in zero)
    near[layer][feature] = value * (1 - 1e-4)
    node = torch.tensor([[layer, position, feature]])
    moved = ablated(subject64, parts, near, batch, target, [node[:0], node], complement=False).double()
    assert float(moved[0] - moved[1]) == pytest.approx(1e-4 * float(estimate[layer, position, feature]), rel=1e-2)


@pytest.mark.parametrize("how", POOLS)
def test_every_way_to_pool_is_affine_on_the_frozen_input(rotary64, how):
    batch, target = rotary64.tokenize([tiny.SMILES]), target_of(rotary64, how)
    framing = frame(rotary64, tiny.random_dictionary(rotary64).double(), batch, target)
    read = framing.frozen.actual.final
    value = float(target.value(rotary64, batch, read))
    assert float((framing.gradient * read[0]).sum()) + framing.constant == pytest.approx(value, rel=1e-10)
    padded = rotary64.tokenize([tiny.SMILES, tiny.SMILES + "CCO"])
    both = target.value(rotary64, padded, target.hidden(rotary64, padded))
    assert float(both[0]) == pytest.approx(value, rel=1e-9)
    if how == "max":
        assert torch.equal(pool(rotary64, batch, read, how)[0], read[0, 1:-1].amax(0))
