"""Graphs of dictionaries under every sparsity rule: what is active differs, what it sums to does not."""

import pytest
import torch
from test_graph import graph_of, largest_deviation

from isotrace.attribution.influence import cumulative_cut


@pytest.mark.parametrize("rule", ["batchtopk", "relu", "jumprelu", "gated"])
def test_edges_add_up_under_every_rule(rotary64, rule):
    """Layers then differ in how many features are active."""
    k = 3 if rule == "batchtopk" else None
    framing, graph = graph_of(rotary64, "mask", activation=rule, k=k)
    assert len({int((values > 0).sum()) for values in framing.active.values}) > 1
    assert largest_deviation(graph) < 1e-7
    for layer, x in enumerate(framing.frozen.actual.mlp_in):
        encoded = framing.dictionary.encode(layer, x[0]).dense(12)
        stacked = type(framing.active)(framing.active.indices[layer], framing.active.values[layer]).dense(12)
        assert torch.equal(encoded, stacked)


def test_cumulative_cut():
    values = torch.tensor([1.0, 4.0, 3.0, 2.0])
    assert [cumulative_cut(values, s) for s in (0.39, 0.4, 0.41, 0.7, 0.71, 1.0)] == [4, 4, 3, 3, 2, 1]
