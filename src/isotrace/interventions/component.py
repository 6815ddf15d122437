"""What mediates: the parts of a subject whose activations can be read, set, ranked and kept.

A mediator splits what flows in each layer into components (neurons, heads, features, …), each with an activation of
`width` numbers per token. A *node* is (layer, position, component); position −1 means at all positions. Whatever a
method does, it does by `edited`: it sees the activations of one layer after the other, as the subject computes them,
and returns those to go on with.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from isotrace.base.registry import Registry
from isotrace.subjects.subject import Batch, Subject

Values = tuple[Tensor, ...]
"""Activations of every layer, `[batch, tokens, components, width]` or what broadcasts to it."""
Edit = Callable[[int, Tensor], Tensor]
"""(layer, activations `[batch, tokens, components, width]`) → those to go on with; the same object = no change."""


class Mediator(ABC):
    """`name` is that of the kind. Layers count the mediator's own, in order; see `sizes`."""

    name: ClassVar[str]

    @abstractmethod
    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        """(components, width) of every layer. Raises SubjectError where the subject has no such parts."""

    @abstractmethod
    def edited(self, subject: Subject, edit: Edit) -> AbstractContextManager[None]:
        """Within the context the subject runs on with what `edit` returns, differentiably."""

    def record(self, subject: Subject, batch: Batch) -> tuple[Values, Tensor]:
        """(activations, final hidden state `[batch, tokens, d_model]`) of one pass."""
        found: dict[int, Tensor] = {}

        def keep(layer: int, values: Tensor) -> Tensor:
            found[layer] = values
            return values

        with self.edited(subject, keep):
            final = subject.hidden(batch.ids, batch.mask)
        return tuple(found[layer] for layer in range(len(found))), final


MEDIATORS: Registry[type[Mediator]] = Registry("mediator", "isotrace.components")
mediator_kind = MEDIATORS.__getitem__
Kind = TypeVar("Kind", bound=type[Mediator])


def register(kind: Kind) -> Kind:
    """Decorator. Raises InputError where another kind has its name."""
    MEDIATORS.register(kind.name, kind)
    return kind


@torch.no_grad()
def mean_values(subject: Subject, mediator: Mediator, batches: list[Batch]) -> Values:
    """Mean activation over the real tokens of `batches`, `[components, width]` per layer: the usual reference."""
    totals = [torch.zeros(size) for size in mediator.sizes(subject)]
    for batch in batches:
        for total, values in zip(totals, mediator.record(subject, batch)[0], strict=True):
            total += values[batch.mask].sum(0)
    count = sum(int(batch.mask.sum()) for batch in batches)
    return tuple(total / count for total in totals)


def zero_values(subject: Subject, mediator: Mediator) -> Values:
    return tuple(torch.zeros(size) for size in mediator.sizes(subject))
