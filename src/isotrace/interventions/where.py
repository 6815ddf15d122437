"""Where an intervention acts: which components, in which layers, at which tokens.

A *node* is (layer, position, component); position −1 means at all positions.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from isotrace.base.errors import InputError, SubjectError
from isotrace.domains.domain import domain_of
from isotrace.subjects.subject import Batch, Subject


class Where(ABC):
    """A set of nodes. Hashed and compared by content. `layers`: those it is about, where it names them; None = any."""

    layers: tuple[int, ...] | None = None

    @abstractmethod
    def mask(self, layer: int, values: Tensor) -> Tensor | None:
        """bool, broadcasts to `[batch, tokens, components]` of `values [batch, tokens, components, width]`; None where
        nothing of the layer is meant. Raises InputError for a component or position that is not there."""

    def on(self, subject: Subject, batch: Batch) -> "Where":
        """The same with what depends on the input resolved on it."""
        return self

    @property
    def meant(self) -> frozenset[int] | None:
        """Layers that may be meant; None = any."""
        return None if self.layers is None else frozenset(self.layers)

    def __invert__(self) -> "Where":
        return self.inner if isinstance(self, Not) else Not(self)


@dataclass(frozen=True)
class Select(Where):
    """Every combination of `layers`, `index` (components) and `positions`; None = all of them. Negative numbers are
    refused: what is the last depends on the input."""

    layers: tuple[int, ...] | None = None
    index: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None

    def mask(self, layer: int, values: Tensor) -> Tensor | None:
        if self.layers is not None and layer not in self.layers:
            return None
        found = torch.ones(1, 1, 1, dtype=torch.bool, device=values.device)
        for chosen, dim, what in ((self.positions, 1, "position"), (self.index, 2, "component")):
            if chosen is not None:
                here = torch.zeros(values.shape[dim], dtype=torch.bool, device=values.device)
                here[_within(chosen, values.shape[dim], what)] = True
                found = found & here.view([-1 if i == dim else 1 for i in range(3)])
        return found


@dataclass(frozen=True)
class Nodes(Where):
    """Single nodes, `(layer, position, component)` each, position −1 = at all positions."""

    nodes: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, nodes: Tensor | Iterable[Iterable[int]]) -> "Nodes":
        """From `[n, 3]`."""
        rows = nodes.tolist() if isinstance(nodes, Tensor) else nodes
        return cls(tuple((int(a), int(b), int(c)) for a, b, c in rows))

    @property
    def meant(self) -> frozenset[int] | None:
        return frozenset(layer for layer, _, _ in self.nodes)

    def mask(self, layer: int, values: Tensor) -> Tensor | None:
        here = [(position, index) for at, position, index in self.nodes if at == layer]
        if not here:
            return None
        _, n_tokens, n, _ = values.shape
        found = torch.zeros(1, n_tokens, n, dtype=torch.bool, device=values.device)
        positions, index = zip(*here, strict=True)
        _within([p for p in positions if p != -1], n_tokens, "position")
        _within(index, n, "component")
        whole = [i for p, i in here if p == -1]
        found[:, :, whole] = True
        single = [(p, i) for p, i in here if p != -1]
        if single:
            at, component = torch.tensor(single, device=values.device).unbind(1)
            found[0, at, component] = True
        return found


@dataclass(frozen=True)
class Rows(Where):
    """A batch of several copies of an input, one after the other: copy i is meant at `copies[i]`. Copies are of equal
    size; a batch that does not divide evenly is refused."""

    copies: tuple[Where, ...]

    @property
    def meant(self) -> frozenset[int] | None:
        found = [where.meant for where in self.copies]
        return None if None in found else frozenset().union(*(part for part in found if part is not None))

    def mask(self, layer: int, values: Tensor) -> Tensor | None:
        size, rest = divmod(len(values), len(self.copies))
        if rest:
            raise InputError(f"{len(values)} rows are no {len(self.copies)} copies of a batch: give whole copies.")
        parts = [where.mask(layer, values) for where in self.copies]
        if all(part is None for part in parts):
            return None
        none = torch.zeros(1, 1, 1, dtype=torch.bool, device=values.device)
        shape = (size, *values.shape[1:3])
        return torch.cat([(none if part is None else part).expand(shape) for part in parts])

    def on(self, subject: Subject, batch: Batch) -> Where:
        return Rows(tuple(where.on(subject, batch) for where in self.copies))


@dataclass(frozen=True)
class Not(Where):
    """Everything but `inner`."""

    inner: Where

    def mask(self, layer: int, values: Tensor) -> Tensor | None:
        found = self.inner.mask(layer, values)
        return torch.ones(1, 1, 1, dtype=torch.bool, device=values.device) if found is None else ~found

    def on(self, subject: Subject, batch: Batch) -> Where:
        return Not(self.inner.on(subject, batch))


@dataclass(frozen=True)
class Units(Where):
    """The tokens that write some atoms or residues (`elements`, numbered from 0 in the order of writing), in every
    sequence of a batch. Resolved on a batch, see `on`."""

    elements: tuple[int, ...]
    layers: tuple[int, ...] | None = None
    index: tuple[int, ...] | None = field(default=None)

    def mask(self, layer: int, values: Tensor) -> Tensor | None:
        raise InputError("atoms and residues are known of a batch only: use Subject.run, or Plan.on(subject, batch).")

    def on(self, subject: Subject, batch: Batch) -> Where:
        """Raises InputError where the subject names no domain, or a sequence has no such element."""
        if subject.files.domain is None:
            raise InputError(f"{subject.source} names no domain, so its tokens stand for no atoms: give positions.")
        domain, copies = domain_of(subject.files.domain), []
        for text, ids, offsets in zip(batch.sequences, batch.ids, batch.offsets, strict=True):
            reading = domain.read(text, subject.tokens(ids[: len(offsets)]), offsets)
            _within(self.elements, reading.n_elements, domain.element)
            wanted = set(self.elements)
            positions = tuple(p for p, part in enumerate(reading.elements) if wanted.intersection(part))
            copies.append(Select(self.layers, self.index, positions))
        return copies[0] if len(copies) == 1 else Rows(tuple(copies))


Which = Literal["real", "masked", "mutable", "generated", "last"]


@dataclass(frozen=True)
class Tokens(Where):
    """Tokens by what they are in a batch, resolved on it, see `on`. `which`: all `real` ones (no padding), the `masked`
    ones, those a generator may change (`mutable`, `Batch.sites`), all from the first of those on (`generated`), or
    the `last` one of every sequence. Special tokens are left out unless their names are among `special`; a mask token
    is none."""

    which: Which = "real"
    special: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.which not in get_args(Which):
            raise InputError(f"{self.which!r} names no tokens: give one of {', '.join(get_args(Which))}.")

    def mask(self, layer: int, values: Tensor) -> Tensor | None:
        raise InputError("these tokens are known of a batch only: use Subject.run, or Plan.on(subject, batch).")

    def on(self, subject: Subject, batch: Batch) -> "Marked | Stacks":
        """Raises InputError where the batch does not say what a generator may change, SubjectError for masked tokens of
        a subject without a mask token or for a special token that it does not have."""
        barred = subject.special(batch.ids)
        if subject.mask_id is not None:
            barred &= batch.ids != subject.mask_id
        for name in self.special:
            barred &= batch.ids != subject.token_id(name)
        found = batch.mask & ~barred
        if self.which == "masked":
            if subject.mask_id is None:
                raise SubjectError(f"{subject.source} has no mask token: edit other tokens than masked ones.")
            found &= batch.ids == subject.mask_id
        elif self.which in ("mutable", "generated"):
            if batch.sites is None:
                raise InputError(f"the batch does not say which tokens are {self.which}: give Batch.sites.")
            found &= batch.sites if self.which == "mutable" else batch.sites.cumsum(1) > 0
        elif self.which == "last":
            places = torch.arange(found.shape[1], device=found.device)
            found &= places == torch.where(found, places, -1).amax(1, keepdim=True)
        own = Marked(found, self.layers)
        if batch.source is None:
            return own
        return Stacks(subject.stack_sizes[0], self._source(subject, batch.source), own)

    def _source(self, subject: Subject, source: Batch) -> "Marked":
        """In what an encoder reads beside the sequence; a generator changes and writes nothing there."""
        if self.which in ("mutable", "generated"):
            return Marked(torch.zeros_like(source.mask), self.layers)
        found = self.on(subject, source)
        assert isinstance(found, Marked)  # what an encoder reads has no source of its own
        return found


@dataclass(frozen=True)
class Stacks(Where):
    """Of a pair: `source` in the first `n_encoder` layers, which read the one sequence, `target` in those behind, which
    read the other."""

    n_encoder: int
    source: "Marked"
    target: "Marked"

    @property
    def meant(self) -> frozenset[int] | None:
        return self.target.meant

    def limited(self, layers: tuple[int, ...] | None) -> "Stacks":
        """The same in `layers`."""
        return replace(self, source=self.source.limited(layers), target=self.target.limited(layers))

    def mask(self, layer: int, values: Tensor) -> Tensor | None:
        return (self.source if layer < self.n_encoder else self.target).mask(layer, values)


@dataclass(frozen=True, eq=False)
class Marked(Where):
    """`tokens [batch, tokens]` bool of one batch, at all components of `layers`."""

    tokens: Tensor
    layers: tuple[int, ...] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Marked) and self.layers == other.layers and torch.equal(self.tokens, other.tokens)

    def __hash__(self) -> int:
        return hash((self.layers, str(self.tokens.tolist())))

    def limited(self, layers: tuple[int, ...] | None) -> "Marked":
        """The same in `layers`."""
        return replace(self, layers=layers)

    def mask(self, layer: int, values: Tensor) -> Tensor | None:
        if self.layers is not None and layer not in self.layers:
            return None
        if self.tokens.shape[1] != values.shape[1] or len(values) not in (1, len(self.tokens)):
            have, meet = [*self.tokens.shape], [*values.shape[:2]]
            raise InputError(f"tokens marked in a batch of {have} meet one of {meet}: resolve the plan on that.")
        return self.tokens.to(values.device)[..., None]


def _within(chosen: Iterable[int], n: int, what: str) -> list[int]:
    found = list(chosen)
    wrong = [i for i in found if not 0 <= i < n]
    if wrong:
        raise InputError(f"there is no {what} {wrong[0]}: give 0 to {n - 1}.")
    return found
