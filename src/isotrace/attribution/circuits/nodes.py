"""By how much the target falls where single nodes are ablated (METHODS §9).

1. first order   (activation − reference) · ∂M/∂activation for every node, from one backward pass through the running
                 subject: attention, norms, MLPs and features all answer
2. measured      where a derivative is least to be trusted, the ablation itself: for the nodes that change the stream
                 most, by |activation − reference| · ‖decoder‖, and for those that are asked for by name
3. checked       on nodes drawn without a look at any effect of the running subject: what 1 says, and what the frozen
                 graph says, against the ablation
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from isotrace.attribution.ablation import Ablation, ablate_in_frozen, ablated, feature_values, first_order
from isotrace.attribution.graph import AttributionGraph, Frame
from isotrace.attribution.influence import Pruned, total_effects
from isotrace.dictionaries.features import Features
from isotrace.subjects.subject import Subject
from isotrace.subjects.targets import Target

N_EXACT = 64
"""Nodes whose ablation is measured because they change the stream most."""
NAMED, LISTED = 64, 12
"""Nodes of a circuit, and of a list, whose ablation is measured because a page names them."""


@dataclass(frozen=True)
class LiveEffects:
    """Of every feature node of the graph, in the running subject, `[n_features]` float64. `measured`: NaN where the
    ablation was not carried out; `exact`: measured for what the node writes, not for its name or by draw."""

    first_order: Tensor
    measured: Tensor
    exact: Tensor

    @property
    def predicted(self) -> Tensor:
        """What is known before a node is looked at: measured for the `exact`, first order for the others."""
        return torch.where(self.exact, self.measured, self.first_order)

    @property
    def best(self) -> Tensor:
        """Measured, where it was."""
        return torch.where(self.measured.isnan(), self.first_order, self.measured)


@dataclass(frozen=True)
class NodeEffects:
    """Effect of ablating single nodes on the target (clean − ablated), `[n]`: to first order in the running subject, as
    `LiveEffects.predicted`, as the frozen graph predicts, and measured in the frozen model and in the running subject.
    `nodes` are indices of feature nodes in the graph; `exact` those that `predicted` has measured."""

    nodes: Tensor
    first_order: Tensor
    predicted: Tensor
    graph: Tensor
    frozen: Tensor
    free_running: Tensor
    exact: Tensor


class NodeMeter:
    """Effects of single nodes of one trace; what was measured once is kept."""

    def __init__(
        self, subject: Subject, frame: Frame, graph: AttributionGraph, target: Target, ablation: Ablation
    ) -> None:
        self.frame, self.graph = frame, graph
        self.ablation: Ablation = ablation
        reference = feature_values(frame.dictionary, ablation)
        self._parts = (subject, Features(frame.dictionary), reference, frame.batch, target)
        self._clean = float(target.value(subject, frame.batch, frame.frozen.actual.final)[0])
        layer, position, feature = graph.feature_nodes.unbind(1)
        slopes = torch.stack(first_order(*self._parts))[layer, position, feature].double()
        nothing = torch.full_like(slopes, torch.nan)
        self.effects = LiveEffects(slopes, nothing, torch.zeros(len(slopes), dtype=torch.bool))
        base = torch.stack(reference)[layer, feature, 0].cpu()
        self.written = (graph.activations - base).abs() * frame.dictionary.decoder_norms().cpu()[layer, feature]

    @cached_property
    def totals(self) -> Tensor:
        """Of every node, see `total_effects`."""
        return total_effects(self.graph)

    @cached_property
    def graph_effects(self) -> Tensor:
        """What the frozen graph says of every feature node, see `ablation_effects`."""
        return ablation_effects(self.frame, self.graph, self.totals, self.ablation)

    def measure(self, nodes: Sequence[int]) -> LiveEffects:
        """With the ablation of `nodes` carried out."""
        new = [n for n in dict.fromkeys(nodes) if bool(self.effects.measured[n].isnan())]
        singles = [self.graph.feature_nodes[n][None] for n in new]
        measured = self.effects.measured.clone()
        measured[new] = self._clean - ablated(*self._parts, singles, complement=False, chunk=16).double()
        self.effects = replace(self.effects, measured=measured)
        return self.effects

    def measure_largest(self, n: int = N_EXACT) -> LiveEffects:
        """With the `n` nodes measured that change the stream most."""
        largest = self.written.argsort(descending=True, stable=True)[:n]
        exact = self.effects.exact.clone()
        exact[largest] = True
        self.effects = replace(self.effects, exact=exact)
        return self.measure(largest.tolist())

    def measure_named(self, circuit: Tensor, lists: Sequence[Tensor]) -> LiveEffects:
        """With what a page names measured: the first of the circuit, and of every list."""
        return self.measure([*circuit[:NAMED].tolist(), *(node for one in lists for node in one[:LISTED].tolist())])

    def check(self, pruned: Pruned, n_nodes: int, seed: int) -> NodeEffects:
        """Half of the nodes are the most influential of the graph, half are drawn at random from all its nodes, so that
        a correlation is not taken over large effects alone."""
        graph = self.graph
        ranked = pruned.influence[: graph.n_features].argsort(descending=True)
        top, rest = ranked[: n_nodes // 2], ranked[n_nodes // 2 :]
        order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))
        nodes = torch.cat([top, rest[order[: n_nodes - len(top)]]])
        found = self.measure(nodes.tolist())
        clean = graph.preactivation[graph.target]
        frozen = clean - ablate_in_frozen(self.frame, graph.feature_nodes[nodes], self.ablation).double()
        first, predicted = found.first_order[nodes], found.predicted[nodes]
        told, real = self.graph_effects[nodes], found.measured[nodes]
        return NodeEffects(nodes, first, predicted, told, frozen, real, found.exact[nodes])


def ablation_effects(frame: Frame, graph: AttributionGraph, effects: Tensor, ablation: Ablation) -> Tensor:
    """By how much the target would fall in the frozen model when each feature is set to its ablated value,
    `[n_features]` float64. `effects` are the total effects of removing it altogether."""
    layer, _, feature = graph.feature_nodes.unbind(1)
    activation = graph.activations.double()
    base = torch.stack(feature_values(frame.dictionary, ablation))[layer, feature, 0].double().cpu()
    return effects[: graph.n_features] * (activation - base) / activation
