"""Influence, pruning and scores of an attribution graph, and signed total effects (METHODS §5).

Nothing here is as large as the graph's matrix: of its rows those that hold edges become float64 a block at a time, and
edges that are kept are a list.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from isotrace.attribution.graph import AttributionGraph, normalise

BLOCK = 1 << 24
"""Entries of a matrix that are float64 at a time."""
BUCKETS = 44
"""Bits of a positive float64 that its bucket leaves out: what is left are exponent and eight bits of the mantissa, so
that buckets are in the order of values."""


@dataclass(frozen=True)
class Scores:
    """replacement: share of the influence reaching embeddings that never passes an error node, against errors.
    completeness: share of incoming influence that is not from errors, weighted by each node's own influence."""

    replacement: float
    completeness: float


@dataclass(frozen=True)
class Pruned:
    """`nodes` `[n]` bool, `kept` `[m, 2]` = (target, source) of the edges kept, ascending, `influence` `[n]` of the
    full graph."""

    nodes: Tensor
    kept: Tensor
    influence: Tensor

    @property
    def edges(self) -> Tensor:
        """The edges kept as a matrix, `[n, n]` bool (row = target)."""
        found = torch.zeros(len(self.nodes), len(self.nodes), dtype=torch.bool)
        found[self.kept[:, 0], self.kept[:, 1]] = True
        return found


Part = Callable[[Tensor], Tensor]
"""Rows of a matrix by their numbers, `[rows, n]`."""


def blocks_of(rows: Tensor, n: int) -> tuple[Tensor, ...]:
    """`rows` in blocks whose rows of `n` entries can be float64 together."""
    return rows.split(max(1, BLOCK // n))


def influence(matrix: Tensor, target: int, part: Part | None = None) -> Tensor:
    """Σ over all paths of normalised |edges| from each node to `target`: ((I − A)⁻¹ − I) summed, `[n]` float64.
    `part`: what stands for rows of `matrix`, where it is not they themselves.

    The graph is acyclic, so the sum over path lengths is finite.
    """
    part, n = part or matrix.__getitem__, len(matrix)
    # rows of features and the target: no other node is reached by an edge
    blocks = blocks_of(torch.cat([rows[(part(rows) != 0).any(1)] for rows in blocks_of(torch.arange(n), n)]), n)
    held = normalise(part(blocks[0]).double()) if len(blocks) == 1 else None
    total = torch.zeros(n, dtype=torch.float64)
    step = normalise(part(torch.tensor([target])).double())[0]
    while bool((step > 0).any()):
        total = total + step
        following = torch.zeros_like(step)
        for rows in blocks:
            following += step[rows] @ (normalise(part(rows).double()) if held is None else held)
        step = following
    return total


def scores(graph: AttributionGraph) -> Scores:
    total, n = influence(graph.matrix, graph.target), graph.n_nodes
    on_tokens, on_errors = total[graph.tokens].sum(), total[graph.errors].sum()
    clean = torch.ones(n, dtype=torch.float64)
    for rows in blocks_of(graph.rows, n):
        clean[rows] = 1 - normalise(graph.matrix[rows].double())[:, graph.errors].sum(1)
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

    def part(rows: Tensor) -> Tensor:
        return graph.matrix[rows] * (keep[rows, None] & keep)

    weight = influence(graph.matrix, graph.target, part)
    weight[graph.target] = 1
    blocks = blocks_of(graph.rows[keep[graph.rows]], graph.n_nodes)

    def edge_scores() -> Iterator[Tensor]:
        return (normalise(part(rows).double()) * weight[rows, None] for rows in blocks)

    cut = cut_in_blocks(edge_scores, edge_threshold, len(blocks))
    found = ((score >= cut) & (score > 0) for score in edge_scores())
    kept = [torch.nonzero(chosen) for chosen in found]
    edges = torch.cat([torch.stack([rows[k[:, 0]], k[:, 1]], 1) for rows, k in zip(blocks, kept, strict=True)])
    while True:
        ends = torch.zeros(2, graph.n_nodes, dtype=torch.bool)  # whether an edge leads to a node, and on from it
        ends[0, edges[:, 0]], ends[1, edges[:, 1]] = True, True
        dangling = keep & ~ends[1]
        dangling[graph.tokens], dangling[graph.target] = False, False
        dangling[: graph.n_features] |= (keep & ~ends[0])[: graph.n_features]
        if features is not None:
            dangling[: graph.n_features] = False
        if not bool(dangling.any()):
            break
        keep &= ~dangling
        edges = edges[~dangling[edges].any(1)]
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


def cut_in_blocks(blocks: Callable[[], Iterator[Tensor]], share: float, n: int) -> float:
    """`cumulative_cut` of the float64 values, none negative, of `n` blocks, which are made anew for every pass: sums by
    bucket say in which bucket the share is reached, and its values alone are sorted."""
    if n == 1:
        return cumulative_cut(next(blocks()).flatten(), share)
    sums = torch.zeros(1 << 63 - BUCKETS, dtype=torch.float64)
    for values in blocks():
        positive = values[values > 0]
        sums.index_add_(0, positive.view(torch.int64) >> BUCKETS, positive)
    if not bool((sums > 0).any()):
        return 0.0
    running = sums.flip(0).cumsum(0).flip(0)  # of a bucket and all above
    reached = (sums > 0) & (running / sums.sum() >= share)
    bucket = int(torch.nonzero(reached if bool(reached.any()) else sums > 0)[-1 if bool(reached.any()) else 0, 0])
    inside = [v[(v > 0) & (v.view(torch.int64) >> BUCKETS == bucket)] for v in blocks()]
    ordered = torch.cat(inside).sort(descending=True).values
    place = int(((running[bucket] - sums[bucket] + ordered.cumsum(0)) / sums.sum() < share).sum())
    return float(ordered[min(place, len(ordered) - 1)])


def total_effects(graph: AttributionGraph) -> Tensor:
    """Signed effect of every node on the target in the frozen model, `[n]` float64: how far the target falls
    when the node's contribution is removed and active features downstream respond linearly."""
    blocks = blocks_of(torch.arange(graph.n_features), graph.n_nodes)

    def relative(rows: Tensor) -> Tensor:
        # an active feature's activation is its pre-activation, so a change of h by Δ scales its output by Δ / a
        return graph.matrix[rows].double() / graph.activations[rows].double()[:, None]

    held = relative(blocks[0]) if len(blocks) == 1 else None
    effect = graph.matrix[graph.target].double()
    step = effect
    for _ in range(graph.n_layers):
        following = torch.zeros_like(step)
        for rows in blocks:
            following += (step[rows, None] * (relative(rows) if held is None else held)).sum(0)
        if not bool((following != 0).any()):
            break
        step, effect = following, effect + following
    return effect
