"""Edge attribution patching: path patching to first order, for all edges at once.

    E(u → v) ≈ (z_u − z′_u) · (∂v/∂u along the direct path)ᵀ ∂M/∂v

1. one pass in which every component is replaced by a leaf of its own value, so that what computes v depends on the
   leaves before it by direct paths alone
2. from the output backwards: one vector–Jacobian product for each receiver. It gives the edges into it, and adds what
   the receiver hands on to ∂M/∂u of every sender; when a component's turn comes, its own gradient is complete

Norms are differentiated with their σ, as path patching computes them anew. The edges out of a node sum to its
attribution patching. Syed et al. 2023 (arXiv:2310.10348) take one backward pass for all, which needs a pre-norm
stream and a separate input for every head; the products here need neither.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.discovery.method import Problem, method
from isotrace.interventions.edges import ComponentGraph, Edges, component_graph, refusal

N_STEPS = 5


@dataclass(frozen=True)
class EdgeScores:
    """`values [batch, E]`: the fall of the metric when the receiver alone reads the sender's reference, for the edges
    of `graph`. `cost`: forward passes of the batch, a backward pass being two."""

    graph: ComponentGraph
    values: Tensor
    cost: float

    @property
    def edges(self) -> Tensor:
        """`[E, 2]` (sender, receiver), see `ComponentGraph`."""
        return self.graph.edges


def refuse_edges(problem: Problem) -> str | None:
    if not isinstance(problem.components, Edges):
        return "it ranks edges: give the mediator edge"
    return refusal(problem.subject)


@method("edge_attribution_patching", ranks="edge", refuse=refuse_edges)
def edge_attribution_patching(problem: Problem) -> EdgeScores:
    """`cost` counts two for each vector–Jacobian product, which is an upper bound: it passes one component and the
    joins and norms before it, never the whole subject."""
    return _edge_gradients(problem, (1.0,))


@method("edge_integrated_gradients", ranks="edge", refuse=refuse_edges)
def edge_integrated_gradients(problem: Problem, *, n_steps: int = N_STEPS) -> EdgeScores:
    """EAP-IG (Hanna et al. 2024, arXiv:2403.17806): the same with gradients averaged over runs whose embedding lies
    between its reference and its own value, at the midpoints of `n_steps` equal steps.

    Raises InputError for fewer than one step.
    """
    if n_steps < 1:
        raise InputError(f"n_steps is {n_steps}: give at least 1.")
    return _edge_gradients(problem, [(step + 0.5) / n_steps for step in range(n_steps)])


def _edge_gradients(problem: Problem, shares: Sequence[float]) -> EdgeScores:
    graph = component_graph(problem.subject)
    with torch.no_grad():
        clean = problem.components.record(problem.subject, problem.batch)[0]
    change = [z - r for z, r in zip(clean, problem.reference, strict=True)]
    values = torch.stack([_edge_values(*_direct_paths(problem, share), change) for share in shares]).mean(0)
    return EdgeScores(graph, values, 1.0 + len(shares) * (1.0 + 2.0 * graph.n_senders))


def _direct_paths(problem: Problem, share: float) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Per layer of the mediator what computes it, and the leaf that replaces it; then M, a scalar. The embedding lies
    `share` of the way from its reference to its own value."""
    computed: list[Tensor] = []
    leaves: list[Tensor] = []

    def edit(layer: int, values: Tensor) -> Tensor:
        if layer == 0:
            values = torch.lerp(problem.reference[0].expand_as(values), values, share)
        computed.append(values)
        leaves.append(values.detach().requires_grad_(True))
        return leaves[-1]

    with torch.enable_grad(), problem.components.edited(problem.subject, edit):
        final = problem.subject.hidden(problem.batch.ids, problem.batch.mask)
        return computed, leaves, problem.metric(problem.batch, final).sum()


def _edge_values(computed: list[Tensor], leaves: list[Tensor], value: Tensor, change: list[Tensor]) -> Tensor:
    """`[batch, E]`."""
    slopes = [torch.zeros_like(leaf) for leaf in leaves]

    def edges_into(receiver: Tensor, rows: Tensor, senders: list[Tensor]) -> Tensor:
        """`[receivers · senders, batch]` for receivers whose gradients are `rows`, one each."""
        ways = {"retain_graph": True, "is_grads_batched": True}
        # Where attention and MLP read one norm, the MLP of a block does not hear its attention.
        found = torch.autograd.grad(receiver, senders, rows, **ways, allow_unused=True)
        grads = [s.new_zeros(len(rows), *s.shape) if g is None else g for s, g in zip(senders, found, strict=True)]
        for slope, grad in zip(slopes, grads, strict=False):
            slope += grad.sum(0)
        parts = [(grad * z).sum((2, 4)) for grad, z in zip(grads, change, strict=False)]
        return torch.cat(parts, -1).transpose(1, 2).flatten(0, 1)

    found = [edges_into(value[None], torch.ones_like(value)[None, None], leaves)]
    for layer in range(len(leaves) - 1, 0, -1):
        # one row for each component of the layer, with the gradient of that component alone
        alone = torch.eye(leaves[layer].shape[2]).to(value)[:, None, None, :, None]
        found.append(edges_into(computed[layer], slopes[layer] * alone, leaves[:layer]))
    return torch.cat(found[::-1]).T
