"""ACDC: edges cut one after the other, from the output backwards, as long as the metric hardly moves (Conmy et al.
2023, arXiv:2304.14997, algorithm 1, with |M(C) − M(x)| in place of a divergence of the outputs)."""

import torch

from isotrace.base.errors import InputError
from isotrace.discovery.edges.circuits import circuit_rows, kept
from isotrace.discovery.edges.edge_patching import EdgeScores, refuse_edges
from isotrace.discovery.method import Problem, method
from isotrace.interventions.edges import component_graph


@method("acdc", ranks="edge", refuse=refuse_edges)
@torch.no_grad()
def acdc(problem: Problem, *, share: float = 0.01) -> EdgeScores:
    """An edge is cut for good if that takes the circuit less than `share` of |M(x) − M(no edge)| further from M(x),
    averaged over the batch. The value of an edge that stays is the fall when it was tried, of one that was cut 0.

    Raises InputError unless `share` is positive.
    """
    if not share > 0:
        raise InputError(f"share is {share}: give a positive share of the whole effect, such as 0.01.")
    graph = component_graph(problem.subject)
    keep = torch.ones(len(graph.edges), dtype=torch.bool)
    clean, empty = kept(problem, torch.stack([keep, ~keep]))
    limit = share * (clean - empty).abs().mean()
    values = torch.zeros(len(clean), len(keep)).to(clean)
    current, distance, cost = clean, torch.zeros(()).to(clean), 2.0
    # edges are listed by receiver, then by sender: backwards is from the output, and the latest sender first
    for edge in range(len(keep) - 1, -1, -1):
        trial = keep.clone()
        trial[edge] = False
        if not graph.live(graph.reads(keep))[graph.edges[edge, 1]]:
            keep = trial
            continue
        found = kept(problem, trial[None])[0]
        cost += len(circuit_rows(graph, trial))
        moved = (found - clean).abs().mean()
        if moved - distance < limit:
            keep, current, distance = trial, found, moved
        else:
            values[:, edge] = current - found
    return EdgeScores(graph, values, cost)
