"""Activations of components and the gradient of a scalar at each: what every first-order estimate is built on."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from isotrace.interventions.components import Components, Edit, Values
from isotrace.subjects.subject import Batch, Subject


def activations_and_slopes(
    subject: Subject,
    components: Components,
    batch: Batch,
    value: Callable[[Tensor], Tensor],
    move: Edit | None = None,
    reads: Sequence[int] = (),
) -> tuple[Values, Values]:
    """(activations, ∂value/∂activation), each `[batch, tokens, components, width]` per layer, from one forward and one
    backward pass. `value`: a scalar from `Subject.hidden` of `reads`, by default the final hidden state.
    `move(layer, values)` sets activations on the way, and the gradient is taken there; it is zero where nothing reads
    an activation."""
    seen: dict[int, Tensor] = {}
    leaves: dict[int, Tensor] = {}

    def edit(layer: int, values: Tensor) -> Tensor:
        values = values if move is None else move(layer, values)
        seen[layer] = values.detach()
        leaves[layer] = torch.zeros_like(values).requires_grad_(True)
        return values + leaves[layer]

    with torch.enable_grad(), components.edited(subject, edit):
        total = value(subject.hidden(batch.ids, batch.mask, reads))
    layers = range(len(leaves))
    found = torch.autograd.grad(total, [leaves[layer] for layer in layers], allow_unused=True)
    slopes = [torch.zeros_like(leaves[layer]) if g is None else g for layer, g in zip(layers, found, strict=True)]
    return tuple(seen[layer] for layer in layers), tuple(slopes)
