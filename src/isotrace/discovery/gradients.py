"""Activations and gradients of a metric at every node: what all methods built on a backward pass share."""

from collections.abc import Callable

import torch
from torch import Tensor

from isotrace.discovery.method import Problem
from isotrace.interventions.components import Values


def gradients(problem: Problem, move: Callable[[int, Tensor], Tensor] | None = None) -> tuple[Values, Values]:
    """(activations, ∂M/∂activation), each `[batch, tokens, components, width]` per layer, from one forward and one
    backward pass. `move(layer, values)` sets activations on the way, and the gradient is taken there."""
    seen: dict[int, Tensor] = {}
    leaves: dict[int, Tensor] = {}

    def edit(layer: int, values: Tensor) -> Tensor:
        values = values if move is None else move(layer, values)
        seen[layer] = values.detach()
        leaves[layer] = torch.zeros_like(values).requires_grad_(True)
        return values + leaves[layer]

    with torch.enable_grad(), problem.components.edited(problem.subject, edit):
        final = problem.subject.hidden(problem.batch.ids, problem.batch.mask)
        total = problem.metric(problem.batch, final).sum()
    layers = range(len(leaves))
    found = torch.autograd.grad(total, [leaves[layer] for layer in layers], allow_unused=True)
    grads = [torch.zeros_like(leaves[layer]) if g is None else g for layer, g in zip(layers, found, strict=True)]
    return tuple(seen[layer] for layer in layers), tuple(grads)


def first_order(clean: Values, reference: Values, slopes: Values) -> Values:
    """(z − z′) · ∂M/∂z `[batch, tokens, components]` per layer."""
    return tuple(((z - r) * g).sum(-1) for z, r, g in zip(clean, reference, slopes, strict=True))
