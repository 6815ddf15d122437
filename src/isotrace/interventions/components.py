"""Components: the parts of a subject whose activations can be read, set, ranked and kept.

A kind of components splits what flows in each layer (into neurons, heads, features, …), each with an activation of
`width` numbers per token. Whatever acts on a subject, it does by `edited`: it sees the activations of one layer after
the other, as the subject computes them, and returns those to go on with.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from isotrace.base.registry import Registry
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.subject import Batch, Subject

Values = tuple[Tensor, ...]
"""Activations of every layer, `[batch, tokens, components, width]` or what broadcasts to it."""
Edit = Callable[[int, Tensor], Tensor]
"""(layer, activations `[batch, tokens, components, width]`) → those to go on with; the same object = no change."""
Layers = Collection[int] | None


class Components(ABC):
    """`name` is that of the kind. Layers count the components' own, in order; see `sizes`."""

    name: ClassVar[str]

    @abstractmethod
    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        """(components, width) of every layer. Raises SubjectError where the subject has no such parts."""

    @abstractmethod
    def edited(self, subject: Subject, edit: Edit, layers: Layers = None) -> AbstractContextManager[None]:
        """Within the context the subject runs on with what `edit` returns, differentiably. `layers`: those the edit is
        for, where it is not for all."""

    def block(self, subject: Subject, layer: int) -> int:
        """A block of the subject before which an edit of `layer` changes nothing."""
        return 0

    def record(self, subject: Subject, batch: Batch) -> tuple[Values, Tensor]:
        """(activations, final hidden state `[batch, tokens, d_model]`) of one pass."""
        found: dict[int, Tensor] = {}

        def keep(layer: int, values: Tensor) -> Tensor:
            found[layer] = values
            return values

        with self.edited(subject, keep):
            final = subject.hidden(batch.ids, batch.mask)
        return tuple(found[layer] for layer in range(len(found))), final

    def clean(self, subject: Subject, batch: Batch) -> Values:
        """What `alone` needs of the subject's own pass to be teacher-forced."""
        return self.record(subject, batch)[0]

    def alone(self, mean: Values, clean: Values | None = None) -> "Components":
        """The same where nothing else speaks in their place, see `Writers`; `mean`: what most of them are set to. With
        `clean`, edits see the subject's own activations instead of what flows (teacher-forced)."""
        return self if clean is None else Taught(self, clean)


@dataclass(frozen=True, eq=False)
class Taught(Components):
    """`components` whose edits are given `clean` in place of the activations that flow."""

    name: ClassVar[str] = "taught"
    components: Components
    values: Values

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        return self.components.sizes(subject)

    def edited(self, subject: Subject, edit: Edit, layers: Layers = None) -> AbstractContextManager[None]:
        return self.components.edited(subject, lambda layer, _: edit(layer, self.values[layer]), layers)


COMPONENTS: Registry[type[Components]] = Registry("components", "isotrace.components")
components_kind = COMPONENTS.__getitem__
Kind = TypeVar("Kind", bound=type[Components])


def register(kind: Kind) -> Kind:
    COMPONENTS.register(kind.name, kind)
    return kind


@torch.no_grad()
def mean_values(subject: Subject, components: Components, batches: list[Batch]) -> Values:
    """Mean activation over the real tokens of `batches`, `[components, width]` per layer: the usual reference. Of what
    has one row for a whole sequence it is the mean over sequences."""
    totals, counts = zero_values(subject, components), [0] * len(components.sizes(subject))
    for batch in batches:
        with fast_kernels(subject):
            found = components.record(subject, batch)[0]
        for layer, values in enumerate(found):
            mask = batch.mask[:, : values.shape[1]]
            totals[layer].add_(values.expand(len(mask), -1, -1, -1)[mask].sum(0))  # looked up once: one row
            counts[layer] += int(mask.sum())
    return tuple(total / count for total, count in zip(totals, counts, strict=True))


def zero_values(subject: Subject, components: Components) -> Values:
    return tuple(torch.zeros(size, device=subject.device) for size in components.sizes(subject))
