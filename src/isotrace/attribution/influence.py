"""Influence, pruning and scores of an attribution graph, and signed total effects (METHODS §5)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from isotrace.attribution.graph import AttributionGraph, normalise


@dataclass(frozen=True)
class Scores:
    """replacement: share of the influence reaching embeddings that never passes an error node, against errors.
    completeness: share of incoming influence that is not from errors, weighted by each node's own influence."""

    replacement: float
    completeness: float


@dataclass(frozen=True)
class Pruned:
    """`nodes` `[n]` bool, `edges` `[n, n]` bool (row = target), `influence` `[n]` of the full graph."""

    nodes: Tensor
    edges: Tensor
    influence: Tensor


def influence(matrix: Tensor, target: int) -> Tensor:
    """Σ over all paths of normalised |edges| from each node to `target`: ((I − A)⁻¹ − I) summed, `[n]` float64.

    The graph is acyclic, so the sum over path lengths is finite.
    """
    rows = torch.nonzero((matrix != 0).any(1))[:, 0]  # of features and the target: no other node is reached by an edge
    normalised = normalise(matrix[rows].double())
    total = torch.zeros(len(matrix), dtype=torch.float64)
    step = normalise(matrix[target].double())
    while bool((step > 0).any()):
        total = total + step
        step = step[rows] @ normalised
    return total


def scores(graph: AttributionGraph) -> Scores:
    total = influence(graph.matrix, graph.target)
    on_tokens, on_errors = total[graph.tokens].sum(), total[graph.errors].sum()
    clean = 1 - normalise(graph.matrix.double())[:, graph.errors].sum(1)
    weight = total.clone()
    weight[graph.errors] = 0
    weight[graph.tokens] = 0
    weight[graph.target] = 1
    return Scores(float(on_tokens / (on_tokens + on_errors)), float((clean * weight).sum() / weight.sum()))


def supporters(support: Tensor, threshold: float) -> Tensor:
    """`[n]` bool: the fewest nodes that together make up `threshold` of the sum of positive `support`."""
    positive = support.clamp(min=0)
    return (positive >= cumulative_cut(positive, threshold)) & (positive > 0)


def prune(
    graph: AttributionGraph, node_threshold: float, edge_threshold: float, features: Tensor | None = None
) -> Pruned:
    """Keep the features and errors that carry `node_threshold` of the influence, then the edges that carry
    `edge_threshold` of the edge influence, then drop what no longer leads from an embedding or error to the
    target. Embeddings and the target always stay. `features [n_features]` bool, where given, names the features
    that stay instead, whether or not an edge that is kept leads on from them."""
    total = influence(graph.matrix, graph.target)
    keep = torch.zeros(graph.n_nodes, dtype=torch.bool)
    internal = total[: graph.tokens.start]
    if len(internal):
        keep[: graph.tokens.start] = total[: graph.tokens.start] >= cumulative_cut(internal, node_threshold)
    if features is not None:
        keep[: graph.n_features] = features
    keep[graph.tokens] = True
    keep[graph.target] = True
    matrix = graph.matrix.clone()
    matrix[~keep] = 0
    matrix[:, ~keep] = 0
    weight = influence(matrix, graph.target)
    weight[graph.target] = 1
    edge_score = normalise(matrix.double()) * weight[:, None]
    edges = (edge_score >= cumulative_cut(edge_score.flatten(), edge_threshold)) & (edge_score > 0)
    while True:
        dangling = keep & ~edges.any(0)
        dangling[graph.tokens], dangling[graph.target] = False, False
        dangling[: graph.n_features] |= (keep & ~edges.any(1))[: graph.n_features]
        if features is not None:
            dangling[: graph.n_features] = False
        if not bool(dangling.any()):
            break
        keep &= ~dangling
        edges[dangling] = False
        edges[:, dangling] = False
    return Pruned(keep, edges, total)


def prune_to_circuit(graph: AttributionGraph, circuit: Tensor, node_threshold: float, edge_threshold: float) -> Pruned:
    """`prune` to the features `circuit [n, 3]`."""
    members = {tuple(node) for node in circuit.tolist()}
    chosen = torch.tensor([tuple(node) in members for node in graph.feature_nodes.tolist()])
    return prune(graph, node_threshold, edge_threshold, chosen)


def cumulative_cut(values: Tensor, share: float) -> float:
    """The smallest value among the largest ones that together make up `share` of the sum."""
    ordered = values.sort(descending=True).values
    reached = ordered.cumsum(0) / ordered.sum().clamp(min=1e-30)
    place = int((reached < share).sum())
    return float(ordered[min(place, len(ordered) - 1)])


def total_effects(graph: AttributionGraph) -> Tensor:
    """Signed effect of every node on the target in the frozen model, `[n]` float64: how far the target falls
    when the node's contribution is removed and active features downstream respond linearly."""
    relative = graph.matrix.double().clone()
    n = graph.n_features
    relative[:n] /= graph.activations.double()[:, None]
    effect = graph.matrix[graph.target].double().clone()
    step = effect.clone()
    for _ in range(graph.n_layers):
        # an active feature's activation is its pre-activation, so a change of h by Δ scales its output by Δ / a
        step = (step[:n, None] * relative[:n]).sum(0)
        if not bool((step != 0).any()):
            break
        effect = effect + step
    return effect
