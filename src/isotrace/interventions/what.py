"""What an intervention makes of the activations it meets."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.interventions.components import Components, Edit, Values, mean_values
from isotrace.subjects.subject import Batch, Subject

Value = float | Tensor
"""A number, or a tensor that broadcasts to `[batch, tokens, components, width]`."""


class What(ABC):
    @abstractmethod
    def new(self, layer: int, values: Tensor) -> Tensor:
        """What broadcasts to `values [batch, tokens, components, width]`."""


@dataclass(frozen=True, eq=False)
class Set(What):
    value: Value

    def new(self, layer: int, values: Tensor) -> Tensor:
        return torch.as_tensor(self.value).to(values)


@dataclass(frozen=True, eq=False)
class Add(What):
    value: Value

    def new(self, layer: int, values: Tensor) -> Tensor:
        return values + torch.as_tensor(self.value).to(values)


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
