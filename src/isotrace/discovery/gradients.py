"""Activations and gradients of a metric at every node: what all methods built on a backward pass share."""

from collections.abc import Callable

from torch import Tensor

from isotrace.discovery.method import Problem
from isotrace.interventions.components import Values
from isotrace.interventions.gradients import activations_and_slopes


def gradients(problem: Problem, move: Callable[[int, Tensor], Tensor] | None = None) -> tuple[Values, Values]:
    """(activations, ∂M/∂activation), each `[batch, tokens, components, width]` per layer, from one forward and one
    backward pass. `move(layer, values)` sets activations on the way, and the gradient is taken there."""
    value = lambda final: problem.metric(problem.batch, final).sum()  # noqa: E731
    return activations_and_slopes(problem.subject, problem.components, problem.batch, value, move)


def first_order(clean: Values, reference: Values, slopes: Values) -> Values:
    """(z − z′) · ∂M/∂z `[batch, tokens, components]` per layer."""
    return tuple(((z - r) * g).sum(-1) for z, r, g in zip(clean, reference, slopes, strict=True))
