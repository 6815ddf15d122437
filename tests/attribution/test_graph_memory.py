"""What a large graph takes a block at a time is what a small one takes at once."""

from dataclasses import astuple

import pytest
import torch

import tiny
from isotrace.attribution import edge_rows
from isotrace.attribution import influence as influence_module
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.influence import cumulative_cut, prune, scores, total_effects

ALL = 10_000


def test_blocks_of_rows_do_not_matter(rotary64, monkeypatch):
    """Influence, pruning, scores and effects where few rows at a time become float64."""
    batch, target = tiny.prepared("mask", rotary64)
    graph = build_graph(frame(rotary64, tiny.random_dictionary(rotary64), batch, target), max_features=ALL)
    whole = [prune(graph, 0.8, share) for share in (0.5, 0.9, 1.0)]
    told, effects = scores(graph), total_effects(graph)
    monkeypatch.setattr(influence_module, "BLOCK", 3 * graph.n_nodes)
    assert len(influence_module.blocks_of(graph.rows, graph.n_nodes)) > 5
    for one, share in zip(whole, (0.5, 0.9, 1.0), strict=True):
        found = prune(graph, 0.8, share)
        assert torch.equal(found.nodes, one.nodes)
        assert torch.equal(found.kept, one.kept)
        torch.testing.assert_close(found.influence, one.influence)
    assert 0 < len(whole[0].kept) < len(whole[1].kept) < len(whole[2].kept)
    assert astuple(scores(graph)) == pytest.approx(astuple(told))
    torch.testing.assert_close(total_effects(graph), effects)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.98, 1.0])
def test_the_cut_in_blocks_is_that_of_all_values(share):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(400, generator=generator, dtype=torch.float64) ** 8
    values[::3] = 0
    found = influence_module.cut_in_blocks(lambda: iter(values.split(7)), share, 58)
    assert found == cumulative_cut(values[values > 0], share)
    assert influence_module.cut_in_blocks(lambda: iter(torch.zeros(4).double().split(2)), share, 2) == 0


@pytest.mark.parametrize("architecture", ["crosslayer", "transcoder"])
def test_writes_that_are_not_kept_are_the_same(rotary64, architecture, monkeypatch):
    batch, target = tiny.prepared("mask", rotary64)
    dictionary = tiny.random_dictionary(rotary64, architecture)
    kept = frame(rotary64, dictionary, batch, target)
    assert kept.writes.held is not None
    graph = build_graph(kept, max_features=ALL)
    monkeypatch.setattr(edge_rows, "HELD", 0)
    monkeypatch.setattr(edge_rows, "BLOCK", 1)
    made = frame(rotary64, dictionary, batch, target)
    assert made.writes.held is None
    assert torch.equal(made.errors, kept.errors)
    assert all(torch.equal(made.writes[s], kept.writes[s]) for s in range(rotary64.n_layers))
    other = build_graph(made, max_features=ALL)
    torch.testing.assert_close(other.matrix, graph.matrix, rtol=1e-12, atol=1e-14)
