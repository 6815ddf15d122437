"""Every edge is an intervention in the frozen subject, and the edges of a row add up to its pre-activation."""
# ruff: noqa: F722  (shape annotations are not Python expressions)

from itertools import product

import pytest
import torch
from beartype import beartype
from jaxtyping import Float, Int64, jaxtyped
from torch import Tensor

import tiny
from isotrace.attribution.ablation import ablate_in_frozen
from isotrace.attribution.graph import AttributionGraph, build_graph, frame
from isotrace.attribution.influence import Pruned, influence, prune, scores, total_effects
from isotrace.subjects.frozen import Sources

KINDS = ("mask", "diff", "probe")
SHAPES = [*product(KINDS, (1, 2, 3)), ("mutation", 2)]
ALL = 10_000


def framed(subject, kind, **shape):
    batch, target = tiny.prepared(kind, subject)
    return frame(subject, tiny.random_dictionary(subject, **shape), batch, target)


def graph_of(subject, kind, *, max_features=ALL, **shape):
    framing = framed(subject, kind, **shape)
    return framing, build_graph(framing, max_features=max_features, batch_size=8)


def largest_deviation(graph):
    """Largest |Σ edges + constant − pre-activation| / |pre-activation|: stricter than `completeness_error`."""
    rows = [*range(graph.n_features), graph.target]
    found = graph.matrix.sum(1)[rows] + graph.constant[rows] + graph.unselected[rows]
    return float(((found - graph.preactivation[rows]) / graph.preactivation[rows]).abs().max())


def layers_of(graph):
    return torch.tensor([graph.layer_of(node) for node in range(graph.n_nodes)])


@pytest.mark.every_family
@pytest.mark.parametrize(("kind", "window"), SHAPES)
def test_edges_add_up(subject64, kind, window):
    """All active features are nodes, or only a few of them: the sum is complete either way."""
    framing, graph = graph_of(subject64, kind, window=window)
    assert graph.completeness_error() < 1e-9
    assert largest_deviation(graph) < 1e-7
    assert graph.n_features == graph.n_active == int((framing.active.values > 0).sum()) > 20
    assert float(graph.unselected.abs().max()) == 0
    few = build_graph(framing, max_features=7, batch_size=8)
    assert few.n_features == 7
    assert few.completeness_error() < 1e-9
    assert largest_deviation(few) < 1e-7
    assert float(few.unselected.abs().max()) > 0


@pytest.mark.parametrize("kind", [*KINDS, "mutation"])
def test_edges_add_up_in_float32(subject, kind):
    for max_features in (9, ALL):
        _, graph = graph_of(subject, kind, max_features=max_features)
        rows = [*range(graph.n_features), graph.target]
        found = graph.matrix.double().sum(1)[rows] + graph.constant[rows] + graph.unselected[rows]
        # against the size of what is added up: a pre-activation near zero has no relative accuracy in float32
        size = graph.matrix.double().abs().sum(1)[rows]
        assert float(((found - graph.preactivation[rows]).abs() / size).max()) < 1e-5


@pytest.mark.every_family
def test_rows_are_the_preactivations_and_the_target(subject64):
    framing, graph = graph_of(subject64, "mask")
    for node in range(graph.n_features):
        layer, position, feature = graph.feature_nodes[node].tolist()
        h = framing.dictionary.preactivations(layer, framing.frozen.actual.mlp_in[layer][0, position])[feature]
        assert float(graph.preactivation[node]) == pytest.approx(float(h), rel=1e-10)
        assert float(graph.activations[node]) == pytest.approx(float(h), rel=1e-10)
    batch, target = tiny.prepared("mask", subject64)
    value = target.value(subject64, batch, subject64.run(batch).final)[0]
    assert float(graph.preactivation[graph.target]) == pytest.approx(float(value), rel=1e-9)


def without(framing, graph, node):
    """The frozen subject's sources with the contribution of one node removed."""
    sources, kind = framing.frozen.sources, graph.kind_of(node)
    embeddings, mlp_out = [e.clone() for e in sources.embeddings], [m.clone() for m in sources.mlp_out]
    if kind == "feature":
        layer, position, feature = graph.feature_nodes[node].tolist()
        for target in framing.dictionary.config.targets(layer):
            mlp_out[target][0, position] -= graph.activations[node] * framing.dictionary.decoder(layer, target)[feature]
    elif kind == "error":
        layer, position = graph.layer_of(node), graph.position_of(node)
        mlp_out[layer][0, position] -= framing.errors[layer, position]
    else:
        group, place = divmod(node - graph.tokens.start, graph.n_tokens)
        assert (kind, graph.position_of(node)) == (
            graph.embeddings[group][0],
            max(0, place - graph.embeddings[group][1]),
        )
        embeddings[group][0, place] = 0
    return Sources(tuple(embeddings), tuple(mlp_out))


@pytest.mark.every_family
@pytest.mark.parametrize(("kind", "window"), [shape for shape in SHAPES if shape[1] > 1])
def test_every_edge_is_an_intervention(subject64, kind, window):
    framing, graph = graph_of(subject64, kind, window=window)
    generator = torch.Generator().manual_seed(3)
    kinds = [graph.kind_of(node) for node in range(graph.n_nodes - 1)]
    assert set(kinds) == {"feature", "error"} | {embedding.kind for embedding in subject64.embeddings}
    layer, position, feature = graph.feature_nodes.T
    clean = framing.frozen.replay(framing.frozen.sources)
    scale = graph.matrix.abs().max()
    for name in sorted(set(kinds)):
        members = torch.tensor([i for i, k in enumerate(kinds) if k == name])
        sample = members[torch.randperm(len(members), generator=generator)[:8]]
        # last-layer nodes beside the masked position have no outgoing edge, most of the others do
        assert int((graph.matrix[:, sample].abs().amax(0) > 0).sum()) >= 3
        for node in sample.tolist():
            changed = framing.frozen.replay(without(framing, graph, node))
            falls = [(a - b)[0] @ framing.dictionary.W_enc[s] for s, (a, b) in
                     enumerate(zip(clean.mlp_in, changed.mlp_in, strict=True))]  # fmt: skip
            expected = torch.stack(falls)[layer, position, feature]
            assert float((graph.matrix[: graph.n_features, node] - expected).abs().max()) < 1e-10 * scale
            on_target = ((clean.final - changed.final)[0] * framing.gradient).sum()
            assert float((graph.matrix[graph.target, node] - on_target).abs()) < 1e-10 * scale


def test_a_feature_reaches_the_target_by_all_its_layers(subject64):
    """The edge is the sum of those with all but one of the feature's decoders at zero, none of them zero."""
    _, graph = graph_of(subject64, "probe", window=3)
    first = int(((graph.feature_nodes[:, :2] == torch.tensor([0, 2])).all(1)).nonzero()[0, 0])
    _, position, feature = graph.feature_nodes[first].tolist()
    batch, target = tiny.prepared("probe", subject64)
    dictionary = tiny.random_dictionary(subject64, window=3)
    d = subject64.d_model
    parts = []
    for slot in range(3):
        kept = dictionary.W_dec[0].data.clone()
        kept[:, : slot * d], kept[:, (slot + 1) * d :] = 0, 0
        only = tiny.random_dictionary(subject64, window=3)
        only.W_dec[0].data.copy_(kept)
        other = build_graph(frame(subject64, only, batch, target), max_features=ALL, batch_size=8)
        node = other.feature_nodes.tolist().index([0, position, feature])
        parts.append(float(other.matrix[other.target, node]))
    assert all(abs(p) > 1e-6 for p in parts)
    assert sum(parts) == pytest.approx(float(graph.matrix[graph.target, first]), rel=1e-9)


@pytest.mark.parametrize("window", [1, 3])
def test_edges_go_forward_in_layer(subject64, window):
    _, graph = graph_of(subject64, "diff", window=window)
    layers = layers_of(graph)
    forward = layers[:, None] > layers[None, :]
    assert bool((graph.matrix[~forward] == 0).all())
    assert bool((graph.matrix[[*range(graph.n_features), graph.target]].abs().sum(1) > 0).all())
    assert bool((graph.matrix[graph.n_features : graph.target] == 0).all()), "errors and embeddings have no inputs"


@pytest.mark.every_family
def test_node_bookkeeping(subject64):
    _, graph = graph_of(subject64, "probe")
    n = graph.n_features
    assert [graph.kind_of(i) for i in (0, n - 1, n, graph.errors.stop - 1, graph.tokens.start, graph.target)] == [
        "feature", "feature", "error", "error", "token", "target"]  # fmt: skip
    for layer in range(graph.n_layers):
        for position in range(graph.n_tokens):
            node = n + layer * graph.n_tokens + position
            assert (graph.layer_of(node), graph.position_of(node)) == (layer, position)
    assert (graph.layer_of(graph.tokens.start), graph.position_of(graph.tokens.start + 1)) == (-1, 1)
    assert (graph.layer_of(graph.target), graph.position_of(graph.target)) == (graph.n_layers, None)
    assert [kind for kind, _ in graph.embeddings] == [embedding.kind for embedding in subject64.embeddings]
    assert graph.tokens.stop - graph.tokens.start == graph.n_tokens * len(graph.embeddings)
    flat = graph.feature_nodes[:, 0] * graph.n_tokens + graph.feature_nodes[:, 1]
    assert bool((flat.diff() >= 0).all()), "features are layer-major"
    assert len(graph.feature_nodes.unique(dim=0)) == n


@pytest.mark.every_family
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", [1, 3])
def test_total_effects_are_ablations_in_the_frozen_subject(subject64, kind, window):
    framing, graph = graph_of(subject64, kind, window=window)
    value = graph.preactivation[graph.target]
    found = total_effects(graph)[: graph.n_features]
    expected = value - ablate_in_frozen(framing, graph.feature_nodes, "zero", chunk=5).double()
    assert tiny.relative(found, expected) < 1e-9
    direct = graph.matrix[graph.target, : graph.n_features].double()
    assert tiny.relative(direct, expected) > 1e-3, "indirect paths matter here"


def test_influence_is_the_neumann_series(subject64):
    _, graph = graph_of(subject64, "mask")
    a = graph.matrix.abs()
    a = a / a.sum(1, keepdim=True).where(a.sum(1, keepdim=True) > 0, 1.0)
    identity = torch.eye(graph.n_nodes)
    expected = (torch.linalg.inv(identity - a) - identity)[graph.target]
    torch.testing.assert_close(influence(graph.matrix, graph.target), expected, rtol=1e-9, atol=1e-12)
    # every path from the target ends in an embedding or an error, and each row's shares add up to one
    found = influence(graph.matrix, graph.target)
    assert float(found[graph.errors].sum() + found[graph.tokens].sum()) == pytest.approx(1, abs=1e-9)
    share = scores(graph)
    assert share.replacement == pytest.approx(float(found[graph.tokens].sum()), abs=1e-9)
    assert 0 < share.completeness < 1


def test_scores_without_errors_are_one(rotary64):
    _, graph = graph_of(rotary64, "probe")
    graph.matrix[:, graph.errors] = 0
    assert (scores(graph).replacement, scores(graph).completeness) == (1.0, 1.0)


def test_a_small_budget_keeps_the_most_influential(subject64):
    """With one round of rows beyond the target's, the chosen are the largest entries of the target row."""
    framing, full = graph_of(subject64, "probe")
    few = build_graph(framing, max_features=5, batch_size=8)
    direct = full.matrix[full.target, : full.n_features].abs()
    best = full.feature_nodes[direct.topk(5).indices]
    assert sorted(few.feature_nodes.tolist()) == sorted(best.tolist())
    place = [full.feature_nodes.tolist().index(node) for node in few.feature_nodes.tolist()]
    torch.testing.assert_close(few.matrix[:5, :5], full.matrix[place][:, place], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_does_not_matter(rotary64, batch_size):
    framing, graph = graph_of(rotary64, "mask")
    other = build_graph(framing, max_features=ALL, batch_size=batch_size)
    assert torch.equal(other.feature_nodes, graph.feature_nodes)
    torch.testing.assert_close(other.matrix, graph.matrix, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("thresholds", [(0.8, 0.98), (0.5, 0.7), (1.0, 1.0)])
def test_prune(subject64, thresholds):
    _, graph = graph_of(subject64, "mask")
    kept = prune(graph, *thresholds)
    always = torch.zeros(graph.n_nodes, dtype=torch.bool)
    always[graph.tokens], always[graph.target] = True, True
    assert bool(kept.nodes[always].all())
    ends = kept.edges.nonzero()
    assert bool((graph.matrix[kept.edges] != 0).all())
    assert bool(kept.nodes[ends].all()), "an edge joins kept nodes"
    internal = kept.nodes & ~always
    assert 0 < int(internal.sum()) <= graph.tokens.start
    # reachable in the pruned graph, found by walking it rather than by the degrees `prune` looks at
    down, up = torch.zeros(2, graph.n_nodes, dtype=torch.bool)
    down[graph.target], up[graph.errors], up[graph.tokens] = True, True, True
    for _ in range(graph.n_layers + 2):
        down |= kept.edges[down].any(0)
        up |= kept.edges[:, up & kept.nodes].any(1)
    assert bool(down[internal].all()), "every kept node leads to the target"
    assert bool(up[internal].all()), "every kept feature is reached from an embedding or an error"
    torch.testing.assert_close(kept.influence, influence(graph.matrix, graph.target))


def test_prune_thresholds_order(subject64):
    _, graph = graph_of(subject64, "probe")
    loose, tight = prune(graph, 0.95, 0.99), prune(graph, 0.5, 0.8)
    assert int(tight.nodes.sum()) < int(loose.nodes.sum())
    assert int(tight.edges.sum()) < int(loose.edges.sum())


def test_a_dictionary_that_is_silent_leaves_errors_and_embeddings(rotary64):
    batch, target = tiny.prepared("probe", rotary64)
    dictionary = tiny.random_dictionary(rotary64)
    for bias in dictionary.b_enc:
        bias.data.fill_(-1e6)
    framing = frame(rotary64, dictionary, batch, target)
    graph = build_graph(framing, max_features=ALL)
    assert graph.n_features == 0
    assert graph.completeness_error() < 1e-9
    assert not bool(total_effects(graph)[: graph.n_features].any())
    assert bool(prune(graph, 0.8, 0.98).nodes[graph.target])


def test_shapes(subject64):
    """Shapes and dtypes as the docstrings state them."""
    framing, graph = graph_of(subject64, "probe")

    @jaxtyped(typechecker=beartype)
    def check(
        nodes: Int64[Tensor, "f 3"],
        activations: Float[Tensor, " f"],
        matrix: Float[Tensor, "n n"],
        preactivation: Float[Tensor, " n"],
        constant: Float[Tensor, " n"],
        unselected: Float[Tensor, " n"],
        effect: Float[Tensor, " n"],
        errors: Float[Tensor, "layers tokens d"],
        gradient: Float[Tensor, "tokens d"],
        indices: Int64[Tensor, "layers tokens k"],
        write: Float[Tensor, "tokens k layers d"],
    ) -> None:
        pass

    per_row = (graph.preactivation, graph.constant, graph.unselected, total_effects(graph))
    framed_parts = (framing.errors, framing.gradient, framing.active.indices, framing.writes[0])
    check(graph.feature_nodes, graph.activations, graph.matrix, *per_row, *framed_parts)
    assert isinstance(graph, AttributionGraph)
    assert isinstance(prune(graph, 0.8, 0.98), Pruned)
