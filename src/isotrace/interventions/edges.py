"""Edges between components: what one component writes, as read by one later component alone.

Components are the embedding (what enters the first block), every attention head, every MLP and the output (the final
hidden state). The edge u → v is the direct path from u to v: the residual stream and its norms, with every component
in between held. Nodes are at all positions; a head reads its queries, keys and values through one edge.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from isotrace.base.errors import SubjectError
from isotrace.interventions.components import Components, Edit, Layers, register
from isotrace.interventions.hookpoints import flowing
from isotrace.subjects.dispatch import hookpoints_edited
from isotrace.subjects.subject import Subject


@dataclass(frozen=True)
class Component:
    """`layer` is the subject's; the embedding has −1, the output `n_layers`. `index` is the head's, else 0."""

    kind: str
    layer: int
    index: int

    def __str__(self) -> str:
        where = {"head": f" {self.layer}.{self.index}", "mlp": f" {self.layer}"}
        return self.kind + where.get(self.kind, "")


@dataclass(frozen=True, eq=False)
class ComponentGraph:
    """`components` in the order of computation, the output last; all others are senders. `edges [E, 2]`: (sender,
    receiver) as places in `components`. `before[v]`: how many senders are computed before v is; heads of one layer
    do not read each other."""

    components: tuple[Component, ...]
    before: tuple[int, ...]

    @cached_property
    def edges(self) -> Tensor:
        return torch.tensor([(u, v) for v, n in enumerate(self.before) for u in range(n)])

    @property
    def n_senders(self) -> int:
        return len(self.components) - 1

    @property
    def output(self) -> int:
        return len(self.components) - 1

    def name(self, edge: int) -> str:
        return " → ".join(str(self.components[place]) for place in self.edges[edge].tolist())

    def reads(self, keep: Tensor) -> Tensor:
        """`[components, senders]` bool: who reads whom through `keep [E]` bool."""
        found = torch.zeros(len(self.components), self.n_senders, dtype=torch.bool)
        sender, receiver = self.edges[keep].unbind(1)
        found[receiver, sender] = True
        return found

    def live(self, reads: Tensor) -> Tensor:
        """`[components]` bool: those from which a path leads to the output."""
        found = torch.zeros(len(self.components), dtype=torch.bool)
        found[self.output] = True
        for component in range(self.output, 0, -1):
            if found[component]:
                found[:-1] |= reads[component]
        return found


def component_graph(subject: Subject) -> ComponentGraph:
    """Raises SubjectError for an encoder–decoder."""
    components, before = [], []
    for layer, (n, _) in enumerate(Edges().sizes(subject)):
        kind = "embedding" if layer == 0 else "head" if layer % 2 else "mlp"
        before += [len(components)] * n
        components += [Component(kind, (layer - 1) // 2, index) for index in range(n)]
    output = Component("output", subject.n_layers, 0)
    return ComponentGraph((*components, output), (*before, len(components)))


@register
@dataclass(frozen=True)
class Edges(Components):
    """Its activations are those of the senders: layer 0 is the embedding, layers 2l + 1 and 2l + 2 the heads and the
    MLP of the subject's layer l. Which receivers see a change is for `kept` to say; `edited` shows it to all."""

    name: ClassVar[str] = "edge"

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        if reason := refusal(subject):
            raise SubjectError(f"{subject.source} has no edges: {reason}.")
        whole = (1, subject.d_model)
        blocks = [((subject.n_heads(n), subject.d_head(n)), whole) for n in range(subject.n_layers)]
        return (whole, *(size for block in blocks for size in block))

    def edited(self, subject: Subject, edit: Edit, layers: Layers = None) -> AbstractContextManager[None]:
        sites = ["layers.0.resid_pre"]
        sites += [f"layers.{n}.{kind}" for n in range(subject.n_layers) for kind in ("head_out", "mlp_out")]
        sizes = self.sizes(subject)
        return hookpoints_edited(
            subject, {site: lambda x, i=i: flowing(edit, i, x, sizes[i]) for i, site in enumerate(sites)}
        )


def refusal(subject: Subject) -> str | None:
    """Why a subject has no edges that are exact."""
    if len(subject.stack_sizes) > 1:
        return "the decoder also reads the encoder by cross-attention, whose heads are no components here"
    return None
