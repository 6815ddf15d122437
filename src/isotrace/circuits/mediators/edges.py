"""Edges between components: what one component writes, as read by one later component alone.

Components are the embedding (what enters the first block), every attention head, every MLP and the output (the final
hidden state). The edge u → v is the direct path from u to v: the residual stream and its norms, with every component
in between held. Nodes are at all positions; a head reads its queries, keys and values through one edge.

Exact in pre-norm and post-norm families alike, since nothing is decomposed. Copies of the input run side by side, and
at every hookpoint each copy goes on with what another copy has just computed there, or with the reference:
- an override pass (a sender's direct paths): every component held at its clean value, but the sender at its reference;
- a circuit of kept edges: one copy for each receiver, whose stream holds what the senders of its kept edges compute
  in their own copies, and the reference of all others (Conmy et al. 2023, arXiv:2304.14997, do this in pre-norm
  subjects).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from isotrace.circuits.mediators.mediator import Edit, Mediator, register
from isotrace.errors import InputError, SubjectError
from isotrace.subjects.subject import Batch, Subject, hookpoints_edited

if TYPE_CHECKING:
    from isotrace.circuits.methods.method import Problem

BATCH_TOKENS = 4_096


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
class Edges(Mediator):
    """Its activations are those of the senders: layer 0 is the embedding, layers 2l + 1 and 2l + 2 the heads and the
    MLP of the subject's layer l. Which receivers see a change is for `kept` to say; `edited` shows it to all."""

    name: ClassVar[str] = "edge"

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        if reason := refusal(subject):
            raise SubjectError(f"{subject.source} has no edges: {reason}.")
        whole = (1, subject.d_model)
        blocks = [((subject.n_heads(n), subject.d_head(n)), whole) for n in range(subject.n_layers)]
        return (whole, *(size for block in blocks for size in block))

    @contextmanager
    def edited(self, subject: Subject, edit: Edit) -> Iterator[None]:
        sizes = self.sizes(subject)
        sites = ["layers.0.resid_pre"]
        sites += [f"layers.{n}.{kind}" for n in range(subject.n_layers) for kind in ("head_out", "mlp_out")]

        def change(x: Tensor, layer: int) -> Tensor:
            values = x.unflatten(-1, sizes[layer])
            new = edit(layer, values)
            return x if new is values else new.flatten(-2)

        edits = {site: lambda x, layer=layer: change(x, layer) for layer, site in enumerate(sites)}
        with hookpoints_edited(subject, edits):
            yield


def refusal(subject: Subject) -> str | None:
    """Why a subject has no edges that are exact."""
    if subject.objective == "denoising":
        return "the decoder also reads the encoder by cross-attention, whose heads are no components here"
    return None


@torch.no_grad()
def mixed_values(problem: "Problem", sources: Tensor, rows: Tensor) -> Tensor:
    """M `[len(rows), batch]` of some of the copies of the input that run side by side.

    `sources [copies, senders]`: copy r goes on with what copy `sources[r, c]` computes for sender c, or with its
    reference where that is −1.
    """
    (size, width), copies = problem.batch.ids.shape, len(sources)
    sizes = problem.mediator.sizes(problem.subject)
    first = [0]
    for n, _ in sizes:
        first.append(first[-1] + n)

    def edit(layer: int, values: Tensor) -> Tensor:
        chosen = sources[:, first[layer] : first[layer + 1]]
        copy, component = torch.nonzero(chosen != torch.arange(copies)[:, None]).unbind(1)
        if not len(copy):
            return values
        values = values.unflatten(0, (copies, size))
        source = chosen[copy, component]
        reference = problem.reference[layer].expand(size, width, *sizes[layer]).permute(2, 0, 1, 3)[component]
        taken = torch.where((source < 0)[:, None, None, None], reference, values[source, :, :, component])
        values = values.clone()
        values[copy, :, :, component] = taken
        return values.flatten(0, 1)

    ids, mask = (t.repeat(copies, 1) for t in (problem.batch.ids, problem.batch.mask))
    with problem.mediator.edited(problem.subject, edit):
        final = problem.subject.hidden(ids, mask)
    final = final.unflatten(0, (copies, size))[rows].flatten(0, 1)
    given = problem.batch
    ids, mask = (t.repeat(len(rows), 1) for t in (given.ids, given.mask))
    metric = problem.metric(Batch(ids, mask, given.sequences * len(rows), given.offsets * len(rows)), final)
    return metric.view(len(rows), size)


def circuit_rows(graph: ComponentGraph, keep: Tensor) -> Tensor:
    """`sources` of `mixed_values` for the circuit of the edges `keep [E]` bool; copy 0 is the output's.

    Receivers that read the same senders share a copy, and those from which no path leads to the output have none.
    """
    reads = graph.reads(keep)
    live = graph.live(reads)
    copies = reads[graph.output][None]
    copy_of = torch.zeros(graph.n_senders, dtype=torch.long)
    # later receivers first: behind what an earlier one reads, its copy may hold anything
    for receiver in range(graph.n_senders - 1, 0, -1):
        if not live[receiver]:
            continue
        n = graph.before[receiver]
        same = torch.nonzero((copies[:, :n] == reads[receiver, :n]).all(1))[:, 0]
        copy_of[receiver] = same[0] if len(same) else len(copies)
        if not len(same):
            copies = torch.cat([copies, reads[receiver][None]])
    return torch.where(copies, copy_of, -1)


def kept(problem: "Problem", keep: Tensor) -> Tensor:
    """M `[circuits, batch]` of every circuit `keep [circuits, E]` bool, edges as in `component_graph`; a receiver
    reads the reference of the senders whose edges are cut. All kept is M(x); with a corrupt input, none is M(x′).

    Raises InputError if the mediator is another, or `keep` does not have one column for every edge.
    """
    if not isinstance(problem.mediator, Edges):
        raise InputError(f"circuits of edges need the mediator edge, not {problem.mediator.name}: give that.")
    graph = component_graph(problem.subject)
    if keep.shape[1:] != (len(graph.edges),):
        raise InputError(
            f"keep has shape {tuple(keep.shape)}, but there are {len(graph.edges)} edges: one column each."
        )
    limit = max(1, BATCH_TOKENS // problem.batch.ids.numel())
    results, sources, rows, count = [], [], [], 0
    for circuit in keep:
        found = circuit_rows(graph, circuit)
        if sources and count + len(found) > limit:
            results.append(mixed_values(problem, torch.cat(sources), torch.tensor(rows)))
            sources, rows, count = [], [], 0
        sources.append(torch.where(found < 0, found, found + count))
        rows.append(count)
        count += len(found)
    if sources:
        results.append(mixed_values(problem, torch.cat(sources), torch.tensor(rows)))
    return torch.cat(results) if results else torch.zeros(0, len(problem.batch.ids))
