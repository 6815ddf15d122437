"""Path patching: the exact effect of every edge (Wang et al. 2022, arXiv:2211.00593; Goldowsky-Dill et al. 2023).

E(u → v) = M(x) − M(x with v as it is when it alone reads the reference of u). For each sender an override pass gives
every such v; then each receiver's value goes into a run of its own, in the same batch.
"""

import torch

from isotrace.discovery.edges.circuits import BATCH_TOKENS, mixed_values
from isotrace.discovery.edges.edge_patching import EdgeScores, refuse_edges
from isotrace.discovery.method import Problem, method
from isotrace.interventions.edges import component_graph


@method("path_patching", ranks="edge", exact=True, refuse=refuse_edges)
@torch.no_grad()
def path_patching(problem: Problem) -> EdgeScores:
    graph = component_graph(problem.subject)
    step = max(1, BATCH_TOKENS // problem.batch.ids.numel() - 2)
    values = torch.zeros(len(graph.edges), len(problem.batch.ids)).to(problem.reference[0])
    cost = 0.0
    for sender in range(graph.n_senders):
        out = torch.nonzero(graph.edges[:, 0] == sender)[:, 0]
        # the last edge out of a sender is that to the output, which the override pass itself measures
        inner, last = out[:-1], out[-1]
        for part in inner.split(step) if len(inner) else [inner]:
            copies = len(part) + 2
            sources = torch.arange(copies)[:, None].repeat(1, graph.n_senders)
            sources[1] = 0  # copy 0 is clean, and copy 1 holds all else at that
            sources[1, sender] = -1
            sources[torch.arange(2, copies), graph.edges[part, 1]] = 1
            found = mixed_values(problem, sources, torch.arange(copies))
            values[part], values[last] = found[0] - found[2:], found[0] - found[1]
            cost += copies
    return EdgeScores(graph, values.T, cost)
