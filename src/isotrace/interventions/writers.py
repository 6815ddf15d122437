"""Components that write vectors of their own, from which what they add to a subject is a sum."""

from abc import abstractmethod
from collections import ChainMap
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from isotrace.interventions.components import Components, Edit, Layers
from isotrace.subjects.dispatch import hookpoints_edited, mlps_computed_by
from isotrace.subjects.subject import Subject


@dataclass(frozen=True, eq=False)
class Moved:
    """Activations `values [batch, tokens, components, 1]` of which only those of `units` have moved, by `change [batch,
    tokens, units, 1]`. Where thousands stand still, nothing has to be computed of them."""

    values: Tensor
    units: Tensor
    change: Tensor

    def whole(self) -> Tensor:
        return self.values.index_add(-2, self.units, self.change)


Written = MutableMapping[int, tuple[Tensor, Tensor | Moved | None]]
_WRITTEN: ContextVar[dict[Any, Written] | None] = ContextVar("isotrace_written", default=None)
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

    def _hooked(
        self, subject: Subject, read: Callable[..., Tensor], write: Callable[..., Tensor], layers: Layers = None
    ):
        """`read(x, layer=)` at what is read, `write(y, layer=)` at what is written; where both are one, the latter. Of
        `layers` only where those read and write."""
        reads, writes = self.reads(subject), self.writes(subject)
        meant = range(len(reads)) if layers is None else layers
        at = sorted({*meant}.union(*(self.targets(layer) for layer in meant)))
        first = {} if [*reads] == [*writes] else {reads[i]: partial(read, layer=i) for i in at}
        return hookpoints_edited(subject, first | {writes[i]: partial(write, layer=i) for i in at})

    @contextmanager
    def added(self, subject: Subject, layer: int, written: Tensor) -> Iterator[None]:
        """Within the context components of `layer` write `[batch, tokens, n_targets · d_out]` more than the subject
        makes them write: an edit of which all is known, so that nothing is encoded."""
        pending: dict[int, Tensor] = {}
        seen: dict[int, Tensor] = {}
        self.add(layer, written, pending)

        def read(x: Tensor, layer: int) -> Tensor:
            seen[layer] = x
            return x

        def write(y: Tensor, layer: int) -> Tensor:
            return y + self.scaled(layer, pending[layer], seen.get(layer, y)) if layer in pending else y

        with self._hooked(subject, read, write, (layer,)):
            yield

    def edited(self, subject: Subject, edit: Edit, layers: Layers = None) -> AbstractContextManager[None]:
        return self.moved(subject, edit, layers)

    @contextmanager
    def moved(
        self, subject: Subject, edit: Callable[[int, Tensor], Tensor | Moved], layers: Layers = None
    ) -> Iterator[None]:
        """As `edited`, of an edit that may say what `Moved`."""
        layers = None if self.replaces else layers
        given = _WRITTEN.get() or {}
        outer: Written = given.get(self.key, {})
        own: Written = {}
        pending: dict[int, Tensor] = {}
        same = [*self.reads(subject)] == [*self.writes(subject)]
        begin = min(layers or (0,))
        means = [self.baseline(layer) for layer in range(len(self.sizes(subject)))] if self.replaces else []
        base = self.base(subject, [m for m in means if m is not None])

        def wide(change: Tensor, x: Tensor) -> Tensor:  # a row that is read may be written to as several
            return change.expand(max(len(x), len(change)), *x.shape[1:-1], -1)

        def read(x: Tensor, layer: int) -> Tensor:
            if layer == begin:  # a pass in which something else stood for what is written, as in a replay, left its own
                pending.clear()
            before = outer.get(layer)
            if layers is not None and layer not in layers:
                own[layer] = (x, None) if before is None else before
                return x
            if before is not None and before[0] is x and before[1] is not None:
                values = before[1].whole() if isinstance(before[1], Moved) else before[1]
            else:
                values = self.encode(layer, self.source(layer, x))[..., None]
            new = edit(layer, values)
            if isinstance(new, Moved) and self.replaces:
                new = new.whole()
            own[layer] = (x, new)
            if isinstance(new, Moved):
                change = new.change[..., 0].expand(*x.shape[:-1], -1)
                self.add(layer, change @ self.rows(subject, layer, new.units), pending)
            elif self.replaces:
                mean = means[layer]
                self.put(subject, layer, wide(new[..., 0] if mean is None else new[..., 0] - mean, x), pending)
            elif new is not values:
                self.put(subject, layer, wide((new - values)[..., 0], x), pending)
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
            # where the write lies behind the read, no nested edit asks for the activations any more
            own[layer] = (y, activations) if same else (x, None)
            return y

        token = _WRITTEN.set({**given, self.key: ChainMap(own, outer)})
        skip = self.replaces and self.replaces_mlps(subject)
        skipped = mlps_computed_by(subject, lambda _, x: x) if skip else nullcontext()
        try:
            with skipped, self._hooked(subject, read, write, layers):
                yield
        finally:
            _WRITTEN.reset(token)

    def put(
        self, subject: Subject, layer: int, change: Tensor, totals: dict[int, Tensor], units: Tensor | None = None
    ) -> None:
        """Add what `change [..., units]` of the activations of `units`, or of all, writes to every layer the components
        of this one write to."""
        if not change.requires_grad:  # few change as a rule, and rows of zeros cost as much as others
            keep = torch.nonzero((change != 0).flatten(0, -2).any(0))[:, 0]
            change, units = change[..., keep], keep if units is None else units[keep.to(units.device)]
        self.add(layer, change @ self.rows(subject, layer, slice(None) if units is None else units), totals)
