"""Circuits of edges, run.

Exact in pre-norm and post-norm families alike, since nothing is decomposed. Copies of the input run side by side, and
at every hookpoint each copy goes on with what another copy has just computed there, or with the reference:
- an override pass (a sender's direct paths): every component held at its clean value, but the sender at its reference;
- a circuit of kept edges: one copy for each receiver, whose stream holds what the senders of its kept edges compute
  in their own copies, and the reference of all others (Conmy et al. 2023, arXiv:2304.14997, do this in pre-norm
  subjects).
"""

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.discovery.method import Problem
from isotrace.interventions.edges import ComponentGraph, Edges, component_graph
from isotrace.subjects.subject import Batch

BATCH_TOKENS = 4_096


@torch.no_grad()
def mixed_values(problem: Problem, sources: Tensor, rows: Tensor) -> Tensor:
    """M `[len(rows), batch]` of some of the copies of the input that run side by side.

    `sources [copies, senders]`: copy r goes on with what copy `sources[r, c]` computes for sender c, or with its
    reference where that is −1.
    """
    (size, width), copies = problem.batch.ids.shape, len(sources)
    sizes = problem.components.sizes(problem.subject)
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
        missing = (source < 0)[:, None, None, None].to(values.device)
        taken = torch.where(missing, reference, values[source, :, :, component])
        values = values.clone()
        values[copy, :, :, component] = taken
        return values.flatten(0, 1)

    ids, mask = (t.repeat(copies, 1) for t in (problem.batch.ids, problem.batch.mask))
    with problem.components.edited(problem.subject, edit):
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


def kept(problem: Problem, keep: Tensor) -> Tensor:
    """M `[circuits, batch]` of every circuit `keep [circuits, E]` bool, edges as in `component_graph`; a receiver
    reads the reference of the senders whose edges are cut. All kept is M(x); with a corrupt input, none is M(x′).

    Raises InputError if the mediator is another, or `keep` does not have one column for every edge.
    """
    if not isinstance(problem.components, Edges):
        raise InputError(f"circuits of edges need the mediator edge, not {problem.components.name}: give that.")
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
    return torch.cat(results) if results else problem.reference[0].new_zeros(0, len(problem.batch.ids))
