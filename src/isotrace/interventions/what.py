"""What an intervention makes of the activations it meets."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.interventions.components import Components, Edit, Values, mean_values
from isotrace.interventions.writers import Moved
from isotrace.subjects.subject import Batch, Subject

Value = float | Tensor
"""A number, or a tensor that broadcasts to `[batch, tokens, components, width]`."""


class What(ABC):
    @abstractmethod
    def new(self, layer: int, values: Tensor) -> Tensor:
        """What broadcasts to `values [batch, tokens, components, width]`; the same object = no change."""

    def begun(self) -> "What":
        """What is asked of within one context: itself, unless it remembers something of a pass."""
        return self


@dataclass(frozen=True, eq=False)
class Set(What):
    value: Value

    def new(self, layer: int, values: Tensor) -> Tensor:
        return torch.as_tensor(self.value).to(values)


@dataclass(frozen=True, eq=False)
class Add(What):
    value: Value

    def new(self, layer: int, values: Tensor) -> Tensor:
        return values + _beside(self.value, values)


@dataclass(frozen=True, eq=False)
class AddShare(What):
    """Adds `value` times the norm of what a token has at all components together."""

    value: Tensor

    def new(self, layer: int, values: Tensor) -> Tensor:
        return values + norms(values) * _beside(self.value, values)


@dataclass(frozen=True, eq=False)
class Scale(What):
    factor: Value

    def new(self, layer: int, values: Tensor) -> Tensor:
        return values * torch.as_tensor(self.factor).to(values)


@dataclass(frozen=True)
class Clamp(What):
    """Between `low` and `high`; None = no bound. Raises InputError without a bound, or for low above high."""

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None and self.high is None:
            raise InputError("a clamp without a bound changes nothing: give low, high or both.")
        if self.low is not None and self.high is not None and not self.low <= self.high:
            raise InputError(f"a clamp from {self.low} to {self.high} holds nothing: give low ≤ high.")

    def new(self, layer: int, values: Tensor) -> Tensor:
        return values.clamp(self.low, self.high)


@dataclass(frozen=True, eq=False)
class To(What):
    """Reference values: `values[layer]` broadcasts to `[batch, tokens, components, width]`. `origin` says what they
    are: the mean over some sequences, the activations of another input."""

    values: Values
    origin: Literal["mean", "other input", "given"] = "given"

    @classmethod
    def mean(cls, subject: Subject, components: Components, batches: list[Batch]) -> "To":
        """Means over the real tokens of `batches`."""
        return cls(mean_values(subject, components, batches), "mean")

    @classmethod
    def other(cls, subject: Subject, components: Components, batch: Batch) -> "To":
        """The activations of another input, of as many tokens (patching)."""
        with torch.no_grad():
            return cls(components.record(subject, batch)[0], "other input")

    def new(self, layer: int, values: Tensor) -> Tensor:
        return self.values[layer].to(values)


@dataclass(frozen=True, eq=False)
class Apply(What):
    """Any function `(layer, values)`, as `Components.edited` takes it; it cannot be saved."""

    function: Edit | Callable[[int, Tensor], Tensor]

    def new(self, layer: int, values: Tensor) -> Tensor:
        return self.function(layer, values)


@dataclass(frozen=True, eq=False)
class Affine(What):
    """scale ⊙ x + shift; with `low` and `high` where low ≤ x ≤ high, coordinate by coordinate, and x elsewhere."""

    scale: Tensor
    shift: Tensor
    low: Tensor | None = None
    high: Tensor | None = None

    def new(self, layer: int, values: Tensor) -> Tensor:
        new = torch.addcmul(self.shift.to(values), values, self.scale.to(values))
        if self.low is None or self.high is None:
            return new
        return torch.where((values >= self.low.to(values)) & (values <= self.high.to(values)), new, values)


@dataclass(frozen=True, eq=False)
class Along(What):
    """x + Σ_i share_i (target − x·v_i) v_i: what a token has along the orthonormal `directions [n, components, width]`
    goes to `target`, all the way where `share` (of all, or `[n]`) is 1."""

    directions: Tensor
    target: float = 0.0
    share: Value = 1.0

    def new(self, layer: int, values: Tensor) -> Tensor:
        directions = fitting(self.directions, values).flatten(-2)
        along = values.flatten(-2) @ directions.T
        change = torch.as_tensor(self.share).to(values) * (self.target - along) @ directions
        return values + change.view_as(values)


@dataclass(frozen=True, eq=False)
class Only(What):
    """`inner` at the components `units` alone; it is given, and gives, `[batch, tokens, units, width]`."""

    units: tuple[int, ...]
    inner: What

    def new(self, layer: int, values: Tensor) -> Tensor:
        units = torch.tensor(self.units, device=values.device)
        part = values[..., units, :]
        new = self.inner.new(layer, part)
        return values if new is part else values.index_copy(2, units, new.to(values).expand_as(part))

    def moved(self, layer: int, values: Tensor, mask: Tensor) -> Moved:
        """The same where `mask` says, told by what changes; of components of one number."""
        units = torch.tensor(self.units, device=values.device)
        part, here = values[..., units, :], mask[..., None].expand_as(values)[..., units, :]
        change = self.inner.new(layer, part).to(values) - part
        return Moved(values, units, change.masked_fill(~here, 0))

    def begun(self) -> What:
        return replace(self, inner=self.inner.begun())


@dataclass(frozen=True, eq=False)
class Then(What):
    """`parts` in turn, each of what the one before it made."""

    parts: tuple[What, ...]

    def new(self, layer: int, values: Tensor) -> Tensor:
        for part in self.parts:
            values = part.new(layer, values)
        return values

    def begun(self) -> What:
        return replace(self, parts=tuple(part.begun() for part in self.parts))


@dataclass(frozen=True, eq=False)
class Normed(What):
    """`inner`, and then every token scaled: to the norm that it had (`keep`), or, where its norm is now above both
    `limit` and what it was, to the larger of the two (`cap`). The norm is that of all components together."""

    inner: What
    how: Literal["keep", "cap"]
    limit: float | None = None

    def __post_init__(self) -> None:
        if (self.how == "cap") != (self.limit is not None and self.limit > 0):
            raise InputError("a cap needs a limit above 0, and keeping the norm has none: give what is missing.")

    def new(self, layer: int, values: Tensor) -> Tensor:
        new = self.inner.new(layer, values)
        if new is values:
            return values
        before, after = norms(values), norms(new).clamp(min=torch.finfo(values.dtype).tiny)
        factor = before / after if self.limit is None else (before.clamp(min=self.limit) / after).clamp(max=1)
        return new * factor

    def begun(self) -> What:
        return replace(self, inner=self.inner.begun())


@dataclass(frozen=True, eq=False)
class Inject(What):
    """Adds Σ_k c_k z_k to layer `into`, z_k what flows at the same tokens in layer k of the same pass, before this
    intervention. Its `Where` means `into` and all `sources` (layer → coefficient), which come before `into`. With
    `direction [components, width]`, a unit one, that is added at the sum's norm in place of the sum."""

    into: int
    sources: Mapping[int, float]
    direction: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.sources or not all(0 <= source < self.into for source in self.sources):
            raise InputError(f"layer {self.into} takes from layers before it: give sources from 0 to {self.into - 1}.")

    def new(self, layer: int, values: Tensor) -> Tensor:
        raise InputError("what is injected is known within a pass only: use a Plan.")

    def begun(self) -> What:
        return _Injecting(self)


@dataclass(frozen=True, eq=False)
class _Injecting(What):
    """`Inject` in a context; passes in it follow each other, layer by layer."""

    inject: Inject
    seen: dict[int, Tensor] = field(default_factory=dict)

    def new(self, layer: int, values: Tensor) -> Tensor:
        if layer in self.inject.sources:
            self.seen[layer] = values
        if layer != self.inject.into:
            return values
        parts = [coefficient * self.seen.pop(source) for source, coefficient in self.inject.sources.items()]
        if any(part.shape != values.shape for part in parts):
            raise InputError(f"layer {layer} has other tokens or sizes than its sources: take layers of one stack.")
        total = torch.stack(parts).sum(0)
        direction = self.inject.direction
        return values + (total if direction is None else norms(total) * fitting(direction, values))


def norms(values: Tensor) -> Tensor:
    """`[batch, tokens, 1, 1]` of `[batch, tokens, components, width]`: of all components of a token together."""
    return torch.linalg.vector_norm(values, dim=(-2, -1), keepdim=True)


def fitting(direction: Tensor, values: Tensor) -> Tensor:
    """`direction` beside `values`. Raises InputError unless its last two sizes are `[components, width]`."""
    if direction.shape[-2:] != values.shape[-2:]:
        raise InputError(f"a direction of {[*direction.shape]} meets components of {[*values.shape[-2:]]}: refit it.")
    return direction.to(values)


def _beside(value: Value, values: Tensor) -> Tensor:
    """Raises InputError for a value of every position that meets sequences of another length."""
    value = torch.as_tensor(value).to(values)
    if value.dim() > 2 and value.shape[-3] not in (1, values.shape[1]):
        raise InputError(f"a value for each of {value.shape[-3]} tokens meets {values.shape[1]} tokens: give as many.")
    return value
