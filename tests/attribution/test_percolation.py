"""Percolation against breadth-first search by hand, faithfulness against ablations one by one."""

import numpy as np
import pytest
import torch

import tiny
from isotrace.attribution.graph import build_graph, frame
from isotrace.attribution.influence import prune
from isotrace.attribution.percolation import Network, grid, network_of, network_view, percolation


def network(n: int, edges: list[tuple[int, int, float]], n_features: int) -> Network:
    sources, targets, weights = (np.array(column) for column in zip(*edges, strict=True))
    return Network(np.arange(n), sources, targets, weights.astype(float), n_features)


def components(n, edges):
    """Sizes, largest first, by repeated search."""
    left, sizes = set(range(n)), []
    while left:
        seen, frontier = set(), {min(left)}
        while frontier:
            seen |= frontier
            ahead = {t for s, t in edges if s in frontier} | {s for s, t in edges if t in frontier}
            frontier = ahead - seen
        left -= seen
        sizes.append(len(seen))
    return sorted(sizes, reverse=True)


def random_network(seed, n=30, m=60):
    rng = np.random.default_rng(seed)
    ends = [(a, b, w) for a, b, w in zip(*rng.integers(0, n, (2, m)), rng.random(m), strict=True) if a < b]
    return network(n, ends, n - 5)


@pytest.mark.parametrize("seed", range(4))
def test_percolation_is_a_search_at_every_threshold(seed):
    net = random_network(seed)
    thresholds = grid(net, 12)
    found = percolation(net, thresholds)
    for k, threshold in enumerate(thresholds):
        kept = [(s, t) for s, t, w in zip(net.sources, net.targets, net.weights, strict=True) if w >= threshold]
        giant, *others = components(30, kept)
        assert found.giant[k] == pytest.approx(giant / 30)
        assert found.components[k] == 1 + len(others)
        expected = sum(s * s for s in others) / sum(others) if others else 0
        assert found.susceptibility[k] == pytest.approx(expected)
        assert found.mean_degree[k] == pytest.approx(2 * len(kept) / 30)


def test_the_grid_goes_from_all_edges_to_one():
    net = random_network(0)
    thresholds = grid(net, 8)
    kept = [int((net.weights >= t).sum()) for t in thresholds]
    assert kept[0] == len(net.weights)
    assert kept[-1] == 1
    assert kept == sorted(kept, reverse=True)
    assert len(set(kept)) == len(kept)


def test_leading_follows_directions_and_the_threshold():
    # 0 → 1 → target; 2 → 1 is weak; the target's own edge to 3 points away from it
    net = network(5, [(0, 1, 2.0), (1, 4, 3.0), (2, 1, 0.5), (4, 3, 9.0)], n_features=4)
    assert net.leading(0.1).tolist() == [True, True, True, False]
    assert net.leading(1.0).tolist() == [True, True, False, False]
    assert net.leading(2.5).tolist() == [False, True, False, False]
    assert net.leading(3.5).tolist() == [False] * 4


def test_a_lattice_of_cliques_breaks_where_its_bridges_do():
    """Four cliques of five, strong inside, joined in a row by weak bridges: without these no giant is left."""
    pairs = [(a, b) for a in range(5) for b in range(a + 1, 5)]
    inside = [(5 * c + a, 5 * c + b, 10.0 + c + a / 10 + b / 100) for c in range(4) for a, b in pairs]
    bridges = [(5 * c, 5 * c + 5, 1.0 + c) for c in range(3)]
    net = network(20, inside + bridges, 19)
    found = percolation(net, np.array([0.5, 5.0]))
    assert found.giant.tolist() == [1.0, 0.25]
    assert found.susceptibility.tolist() == [0.0, 5.0]
    shuffled = net.shuffled(np.random.default_rng(0))
    assert sorted(shuffled.weights) == sorted(net.weights)
    assert not np.array_equal(shuffled.weights, net.weights)
    assert np.array_equal(shuffled.sources, net.sources)


@pytest.fixture
def traced(relu_subject):
    batch, target = tiny.prepared("mask", relu_subject)
    framing = frame(relu_subject, tiny.random_dictionary(relu_subject, n_features=24, k=6), batch, target)
    graph = build_graph(framing, max_features=200)
    return relu_subject, framing, graph, prune(graph, 0.9, 0.98), target


def test_network_leaves_errors_out(traced):
    _, _, graph, pruned, _ = traced
    net = network_of(graph, pruned)
    errors = range(graph.errors.start, graph.errors.stop)
    assert bool(pruned.nodes[graph.errors].any()), "there are errors to leave out"
    assert not set(net.nodes.tolist()) & set(errors)
    assert net.nodes[-1] == graph.target
    expected = {(int(t), int(s)) for t, s in pruned.edges.nonzero().tolist() if s not in errors}
    assert {(int(net.nodes[t]), int(net.nodes[s])) for s, t in zip(net.sources, net.targets, strict=True)} == expected
    weights = graph.matrix[net.nodes[net.targets], net.nodes[net.sources]].abs()
    np.testing.assert_allclose(net.weights, weights)


def test_faithfulness_is_an_ablation_of_what_no_longer_leads_to_the_target(traced):
    subject, framing, graph, pruned, target = traced
    view = network_view(*traced, ablation="mean", seed=0, n_thresholds=10, n_shuffled_faithfulness=2)
    full = float(target.value(subject, framing.batch, framing.frozen.actual.final))
    arguments = (subject, framing.dictionary, framing.batch, target)
    empty = float(tiny.ablated(*arguments, [graph.feature_nodes[:0]], complement=True, ablation="mean"))
    assert len(set(view.features.tolist())) > 2, "the circuit shrinks in several steps"
    for k, threshold in enumerate(view.thresholds):
        strong = pruned.edges & (graph.matrix.abs() >= threshold)
        reached = torch.zeros(graph.n_nodes, dtype=torch.bool)
        reached[graph.target] = True
        for _ in range(graph.n_layers + 1):
            reached |= strong[reached].any(0)
        kept = graph.feature_nodes[reached[: graph.n_features]]
        value = float(tiny.ablated(*arguments, [kept], complement=True, ablation="mean"))
        assert view.features[k] == len(kept)
        assert view.faithfulness[k] == pytest.approx(1 - abs(value - full) / abs(full - empty), abs=1e-4)
    assert view.faithfulness[0] != pytest.approx(view.faithfulness[-1], abs=1e-3)
    within = network_view(*traced, ablation="mean", seed=0, n_thresholds=10, spread=2 * abs(full - empty))
    assert np.isnan(within.faithfulness).all()
    assert within.breaks is None
    broken = [k for k, f in enumerate(view.faithfulness) if f < 0.5]
    assert view.breaks == (broken[0] if broken else None)
    assert view.percolates == int(np.argmax(view.curve.susceptibility))


def test_the_null_has_the_same_edges_and_is_seeded(traced):
    first, again, other = (
        network_view(*traced, ablation="mean", seed=seed, n_thresholds=6, n_shuffled_faithfulness=1)
        for seed in (0, 0, 1)
    )
    assert len(first.shuffled) == 20
    for null in first.shuffled:
        assert np.array_equal(null.mean_degree, first.curve.mean_degree)
    giants = [np.stack([p.giant for p in view.shuffled]) for view in (first, again, other)]
    assert np.array_equal(giants[0], giants[1])
    assert not np.array_equal(giants[0], giants[2])
    assert first.shuffled_faithfulness.shape == (1, len(first.thresholds))
    # with all edges left it is the same circuit
    assert first.shuffled_faithfulness[0, 0] == pytest.approx(first.faithfulness[0], abs=1e-5)
    table = first.to_dict()
    assert table["kind"] == "diagnostic"
    assert table["null"]["giant"]["low"].shape == first.thresholds.shape
    with pytest.raises(ValueError, match="20 shuffles"):
        network_view(*traced, ablation="mean", seed=0, n_shuffled=5)
