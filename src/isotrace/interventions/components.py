"""Components: the parts of a subject whose activations can be read, set, ranked and kept.

A kind of components splits what flows in each layer (into neurons, heads, features, …), each with an activation of
`width` numbers per token. Whatever acts on a subject, it does by `edited`: it sees the activations of one layer after
the other, as the subject computes them, and returns those to go on with.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from isotrace.base.registry import Registry
from isotrace.subjects.dispatch import hookpoints_edited, mlps_computed_by
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


_WRITTEN: ContextVar[dict[Any, dict[int, tuple[Tensor, Tensor | None]]] | None] = ContextVar(
    "isotrace_written", default=None
)
"""Key of writers → layer → (the tensor last read there, the activations an outer context has made of it, if any)."""


class Writers(Components):
    """Components of one number each that write vectors of their own: to the hookpoints `writes`, one per layer, each
    from what it reads at `reads`.

    An edit adds Δa · rows to what the subject itself writes (METHODS §9, *delta*), so that what the components do not
    explain stays, or, where `replaces` is true, the sum of what they write stands in its place: then nothing but
    they speak. Nested edits of the same components see each other's activations, unless something changed what is
    read in between.
    """

    replaces: bool = False

    @abstractmethod
    def reads(self, subject: Subject) -> Sequence[str]: ...

    @abstractmethod
    def writes(self, subject: Subject) -> Sequence[str]: ...

    @abstractmethod
    def encode(self, layer: int, x: Tensor) -> Tensor:
        """Activations `[..., components]` of what is read, `[..., d_in]`."""

    @abstractmethod
    def rows(self, subject: Subject, layer: int, keep: Tensor | slice) -> Tensor:
        """What components write per unit of activation, to all targets of the layer side by side:
        `[n_kept, n_targets · d_out]`."""

    @abstractmethod
    def targets(self, layer: int) -> list[int]:
        """The layers that components of this one write to."""

    @abstractmethod
    def finish(self, subject: Subject, layer: int, total: Tensor, x: Tensor) -> Tensor:
        """The output of a layer from what components wrote to it and what the layer read: bias, skip path."""

    def block(self, subject: Subject, layer: int) -> int:
        kind, _, number = self.reads(subject)[layer].partition(".")
        return int(number.partition(".")[0]) if kind == "layers" and not self.replaces else 0

    def replaces_mlps(self, subject: Subject) -> bool:
        """They cover every MLP from end to end, which then need not run where they are replaced."""
        return False

    def source(self, layer: int, x: Tensor) -> Tensor:
        """What is encoded where `x` is read."""
        return x

    def baseline(self, layer: int) -> Tensor | None:
        """Activations `[components]` that edits are near, so that only what differs from them is multiplied out."""
        return None

    @property
    def key(self) -> Any:
        """What nested edits of the same components have in common."""
        return self

    def add(self, layer: int, written: Tensor, totals: dict[int, Tensor]) -> None:
        """Add what components of a layer wrote, `[..., n_targets · d_out]`, to the total of every layer it goes to."""
        targets = self.targets(layer)
        for target, part in zip(targets, written.chunk(len(targets), -1), strict=True):
            totals[target] = totals[target] + part if target in totals else part

    def base(self, subject: Subject, mean: Sequence[Tensor]) -> dict[int, Tensor]:
        """What all components at `mean [components]` write to each layer, `[d_out]`."""
        written: dict[int, Tensor] = {}
        for layer, values in enumerate(mean):
            self.add(layer, values @ self.rows(subject, layer, slice(None)), written)
        return written

    def scaled(self, layer: int, change: Tensor, x: Tensor) -> Tensor:
        """What `finish` adds for a change of the total."""
        return change

    @contextmanager
    def computed_by(self, subject: Subject, output: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
        """Within the context `output(layer, x)` is what is written, x what the layer reads."""
        seen: dict[int, Tensor] = {}

        def read(x: Tensor, layer: int) -> Tensor:
            seen[layer] = x
            return x

        def write(y: Tensor, layer: int) -> Tensor:
            return output(layer, seen.get(layer, y))

        # the subject's own MLPs need not run where all of them are replaced; what stands for them is not read
        skipped = mlps_computed_by(subject, lambda _, x: x) if self.replaces_mlps(subject) else nullcontext()
        with skipped, self._hooked(subject, read, write):
            yield

    def _hooked(self, subject: Subject, read: Callable[..., Tensor], write: Callable[..., Tensor]):
        """`read(x, layer=)` at what is read, `write(y, layer=)` at what is written; where both are one, the latter."""
        reads, writes = self.reads(subject), self.writes(subject)
        first = {} if [*reads] == [*writes] else {s: partial(read, layer=i) for i, s in enumerate(reads)}
        return hookpoints_edited(subject, first | {s: partial(write, layer=i) for i, s in enumerate(writes)})

    def edited(self, subject: Subject, edit: Edit, layers: Layers = None) -> AbstractContextManager[None]:
        return self._edited(subject, edit, None if self.replaces else layers)

    @contextmanager
    def _edited(self, subject: Subject, edit: Edit, layers: Layers) -> Iterator[None]:
        given = _WRITTEN.get() or {}
        outer, own, pending = given.get(self.key, {}), {}, {}
        same = [*self.reads(subject)] == [*self.writes(subject)]
        means = [self.baseline(layer) for layer in range(len(self.sizes(subject)))] if self.replaces else []
        base = self.base(subject, [m for m in means if m is not None])

        def read(x: Tensor, layer: int) -> Tensor:
            if layer == 0:  # a pass in which something else stood for what is written, as in a replay, left its own
                pending.clear()
            before = outer.get(layer)
            if layers is not None and layer not in layers:
                own[layer] = (x, None) if before is None else before
                return x
            if before is not None and before[0] is x and before[1] is not None:
                values = before[1]
            else:
                values = self.encode(layer, self.source(layer, x))[..., None]
            new = edit(layer, values)
            own[layer] = (x, new)
            if self.replaces:
                mean = means[layer]
                self._write(subject, layer, new[..., 0] if mean is None else new[..., 0] - mean, x, pending)
            elif new is not values:
                self._write(subject, layer, (new - values)[..., 0], x, pending)
            return x

        def write(y: Tensor, layer: int) -> Tensor:
            if same:
                read(y, layer)
            x, activations = own[layer]
            change = pending.pop(layer, None)
            if self.replaces:
                total = change if layer not in base else base[layer] if change is None else base[layer] + change
                y = self.finish(subject, layer, torch.zeros_like(y) if total is None else total, self.source(layer, x))
            elif change is not None:
                y = y + self.scaled(layer, change, x)
            if same:
                own[layer] = (y, activations)
            return y

        token = _WRITTEN.set({**given, self.key: own})
        skip = self.replaces and self.replaces_mlps(subject)
        skipped = mlps_computed_by(subject, lambda _, x: x) if skip else nullcontext()
        try:
            with skipped, self._hooked(subject, read, write):
                yield
        finally:
            _WRITTEN.reset(token)

    def _write(self, subject: Subject, layer: int, change: Tensor, x: Tensor, pending: dict[int, Tensor]) -> None:
        """Add what `change [batch, tokens, components]` writes to every layer the components of this one write to."""
        change, keep = change.expand(*x.shape[:-1], -1), slice(None)
        if not change.requires_grad:  # few change as a rule, and rows of zeros cost as much as others
            keep = torch.nonzero((change != 0).flatten(0, -2).any(0))[:, 0]
            change = change[..., keep]
        self.add(layer, change @ self.rows(subject, layer, keep), pending)


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
