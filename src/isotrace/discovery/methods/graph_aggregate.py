"""The attribution graph aggregated over a data set: which features, and which edges between them, carry a metric.

Per input: build the graph, take each feature node's signed total effect on the target (and its influence, which is
unsigned and a share), sum over positions; then average over inputs, where an input on which a feature is not a node
counts as 0. An edge between features counts what of the metric passes it, edge · effect of the receiver / its
activation; so the edges out of a feature and its direct effect sum to its total effect.

Inputs stream: a running sum for every feature, and at most `max_edges` edges, the strongest so far.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor

from isotrace.attribution.graph import AttributionGraph, build_graph, frame
from isotrace.attribution.influence import influence, total_effects
from isotrace.base.errors import InputError
from isotrace.dictionaries.features import Features
from isotrace.discovery.method import Metric, Problem, Scores, method
from isotrace.subjects.frozen import FrozenSubject
from isotrace.subjects.subject import Batch
from isotrace.subjects.targets import Target

MAX_FEATURES, MAX_EDGES = 1_200, 200_000


@dataclass(frozen=True)
class Aggregate:
    """Means over `n_graphs` inputs. `effect`, `unsigned` (mean |effect| of an input), `influence`
    `[n_layers, F]` float64; `count [n_layers, F]` inputs on which the feature is a node. `edges [E, 4]` = (layer,
    feature) of the sender and of the receiver, the strongest first by `edge_unsigned [E]`; `edge_effect [E]` is
    signed. `edges_dropped`: how often an edge was given up to stay within bounds; the edges are exact if it is 0."""

    n_graphs: int
    effect: Tensor
    unsigned: Tensor
    influence: Tensor
    count: Tensor
    edges: Tensor
    edge_effect: Tensor
    edge_unsigned: Tensor
    edges_dropped: int

    def ranking(self, by: Literal["effect", "unsigned", "influence"]) -> Tensor:
        """`[n, 2]` (layer, feature) of the features that were nodes, the strongest first."""
        values: Tensor = getattr(self, by)
        order = values.flatten().argsort(descending=True, stable=True)
        order = order[self.count.flatten()[order] > 0]
        return torch.stack([order // values.shape[1], order % values.shape[1]], 1)


def aggregate(
    graphs: Iterable[AttributionGraph], n_layers: int, n_features: int, *, max_edges: int = MAX_EDGES
) -> Aggregate:
    """Of any number of graphs of one dictionary; one at a time is in memory. Raises InputError for none."""
    size, n = n_layers * n_features, 0
    sums, count = torch.zeros(3, size, dtype=torch.float64), torch.zeros(size, dtype=torch.long)
    keys, weights, dropped = torch.zeros(0, dtype=torch.long), torch.zeros(0, 2, dtype=torch.float64), 0
    for graph in graphs:
        n += 1
        effect = total_effects(graph)[: graph.n_features].double()
        place, node = torch.unique(_places(graph, n_features), return_inverse=True)
        per_feature = torch.zeros(2, len(place), dtype=torch.float64)
        per_feature.index_add_(1, node, torch.stack([effect, influence(graph.matrix, graph.target)[: len(effect)]]))
        sums[:, place] += torch.stack([per_feature[0], per_feature[0].abs(), per_feature[1]])
        count[place] += 1
        found, passing = _edges(graph, effect, n_features, size)
        keys, back = torch.unique(torch.cat([keys, found]), return_inverse=True)
        both = torch.cat([weights, torch.stack([passing, passing.abs()], 1)])
        weights = torch.zeros(len(keys), 2, dtype=torch.float64).index_add_(0, back, both)
        if len(keys) > max_edges:
            best = weights[:, 1].topk(max_edges).indices
            dropped += len(keys) - max_edges
            keys, weights = keys[best], weights[best]
    if not n:
        raise InputError("there is no graph to aggregate: give at least one input.")
    order = weights[:, 1].argsort(descending=True, stable=True)
    sender, receiver = keys[order] // size, keys[order] % size
    ends = [sender // n_features, sender % n_features, receiver // n_features, receiver % n_features]
    signed, unsigned = (weights[order] / n).unbind(1)
    effect, absolute, share = (part.view(n_layers, n_features) / n for part in sums)
    count, ends = count.view(n_layers, n_features), torch.stack(ends, 1)
    return Aggregate(n, effect, absolute, share, count, ends, signed, unsigned, dropped)


def _places(graph: AttributionGraph, n_features: int) -> Tensor:
    layer, _, feature = graph.feature_nodes.unbind(1)
    return layer * n_features + feature


def _edges(graph: AttributionGraph, effect: Tensor, n_features: int, size: int) -> tuple[Tensor, Tensor]:
    """(key of sender and receiver, what passes) of every pair of features of one graph, summed over positions."""
    n, places = graph.n_features, _places(graph, n_features)
    receiver, sender = torch.nonzero(graph.matrix[:n, :n]).unbind(1)
    passing = graph.matrix[receiver, sender].double() * (effect / graph.activations.double())[receiver]
    keys, back = torch.unique(places[sender] * size + places[receiver], return_inverse=True)
    return keys, torch.zeros(len(keys), dtype=torch.float64).index_add_(0, back, passing)


@dataclass(frozen=True)
class _Tangent:
    """A metric as an affine function of the final hidden state, by its gradient there; exact for a linear probe."""

    metric: Metric
    batch: Batch
    reads: tuple[int, ...] = ()

    def linear(self, frozen: FrozenSubject) -> tuple[Tensor, float]:
        final = frozen.actual.final.detach().requires_grad_(True)
        value = self.metric(self.batch, final).sum()
        (gradient,) = torch.autograd.grad(value, final)
        return gradient[0], float(value.detach() - (gradient * final.detach()).sum())


def problem_graph(problem: Problem, row: int, max_features: int) -> AttributionGraph:
    """The graph of one sequence of the batch, towards the metric linearised at its clean value."""
    assert isinstance(problem.components, Features)
    given, n, here = problem.batch, int(problem.batch.mask[row].sum()), slice(row, row + 1)
    single = Batch(given.ids[here, :n], given.mask[here, :n], given.sequences[here], given.offsets[here])
    # all that a frame asks of its target is to be linear
    target = cast(Target, _Tangent(problem.metric, single))
    framed = frame(problem.subject, problem.components.dictionary, single, target)
    return build_graph(framed, max_features=max_features)


def refuse(problem: Problem) -> str | None:
    if not isinstance(problem.components, Features):
        return "its nodes are features: give the mediator feature"
    if problem.components.errors == "drop" or problem.components.teacher is not None:
        return "its graph keeps errors and lets the subject run freely: give features with errors and no teacher"
    config = problem.components.dictionary.config
    if (config.hookpoint_in, config.hookpoint_out) != ("layers.{}.mlp_in", "layers.{}.mlp_out"):
        return f"its features replace MLPs, but these read {config.hookpoint_in} and write {config.hookpoint_out}"
    if config.skip or config.token_normalization != "none" or config.n_layers < problem.subject.n_layers:
        return "its graph needs a dictionary of all layers without a skip path or token normalisation"
    return None


@method("graph_aggregate", refuse=refuse)
def graph_aggregate(problem: Problem, *, max_features: int = MAX_FEATURES) -> Scores:
    """Per sequence and feature, summed over positions: total effect in the frozen subject × the share of the
    activation that the reference takes away, (a − a′)/a. Features that are not active have 0, and so have those
    beyond the `max_features` of greatest influence. Cost: one backward pass for each node. The metric of one
    sequence must not depend on how many others are in its batch."""
    config = cast(Features, problem.components).dictionary.config
    (size, width), n = problem.batch.ids.shape, config.n_features
    values = tuple(torch.zeros(size, 1, n).to(problem.reference[0]) for _ in range(config.n_layers))
    cost = 0.0
    for row in range(size):
        graph = problem_graph(problem, row, max_features)
        layer, position, feature = graph.feature_nodes.unbind(1)
        effect = total_effects(graph)[: graph.n_features]
        for at, (reference, total) in enumerate(zip(problem.reference, values, strict=True)):
            here = layer == at
            base = reference.expand(size, width, n, 1)[row, position[here], feature[here], 0]
            share = 1 - base / graph.activations[here]
            total[row, 0].index_add_(0, feature[here], (effect[here] * share).to(total))
        cost += (2.0 + 2.0 * (graph.n_features + 1)) / size
    return Scores(values, cost)
