"""Kinds of edit that act on single coordinates or units, and the one that takes from earlier layers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.dictionaries.features import Features
from isotrace.interventions import Add, Affine, Inject, Only, Scale, Set
from isotrace.interventions.what import What
from isotrace.steering.kinds import EDITS, Edit, drawn, unit


@EDITS.named("affine")
@dataclass(frozen=True, eq=False, kw_only=True)
class AffineEdit(Edit):
    """h ← (1 + α (ω − 1)) ⊙ h + α b; with `low` and `high` only where a coordinate of h lies between them, which are
    both given or neither. A twin has ω − 1 and b at other coordinates, with random signs, and every coordinate keeps
    its own range."""

    kind: ClassVar[str] = "affine"
    scale: Tensor
    shift: Tensor
    low: Tensor | None = None
    high: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.low is None) != (self.high is None):
            raise InputError("a range has two ends: give low and high, or neither.")
        if self.low is not None and self.high is not None and not bool((self.low <= self.high).all()):
            raise InputError(f"the range at layer {self.layer} ends below where it begins: give low ≤ high.")

    def what(self, alpha: float) -> What:
        return Affine(1 + alpha * (self.scale - 1), alpha * self.shift, self.low, self.high)

    def twin(self, generator: torch.Generator, covariance: Tensor | None = None) -> Self:
        flat, shape = self.scale.numel(), self.scale.shape
        order = torch.randperm(flat, generator=generator)
        signs = torch.randint(0, 2, (2, flat), generator=generator) * 2 - 1
        parts = torch.stack([self.scale.flatten() - 1, self.shift.flatten()])[:, order] * signs
        return replace(self, scale=1 + parts[0].view(shape), shift=parts[1].view(shape))


@EDITS.named("gain")
@dataclass(frozen=True, eq=False, kw_only=True)
class GainEdit(Edit):
    """h_i ← h_i (1 + α β_i); β is 0 nearly everywhere. A twin has the same β at other coordinates."""

    kind: ClassVar[str] = "gain"
    beta: Tensor

    def what(self, alpha: float) -> What:
        return Scale(1 + alpha * self.beta)

    def twin(self, generator: torch.Generator, covariance: Tensor | None = None) -> Self:
        order = torch.randperm(self.beta.numel(), generator=generator)
        return replace(self, beta=self.beta.flatten()[order].view_as(self.beta))


@EDITS.named("feature")
@dataclass(frozen=True, eq=False, kw_only=True)
class FeatureEdit(Edit):
    """Components of one number each, features of a dictionary above all: a_f ← α c_f (`clamp`), a_f + α c_f (`add`) or
    a_f (1 + α c_f) (`scale`), f in `units`, c = `values [units]`; for clamping, the largest activations on data. With
    `Features` what changes is added to what the subject writes (Σ (a′ − a) W_dec, at every layer that they write to),
    so that the dictionary's error stays in. `pool`: units that a twin may have, those that are active on the data;
    its values are scaled so that what is written keeps its norm, unit by unit."""

    kind: ClassVar[str] = "feature"
    units: tuple[int, ...]
    values: Tensor
    mode: Literal["clamp", "add", "scale"] = "clamp"
    pool: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.values.shape != (len(self.units),) or len({*self.units}) < len(self.units) or not self.units:
            raise InputError(f"{len(self.units)} units and {[*self.values.shape]} values: give one for every unit.")
        if len({*self.pool} - {*self.units}) < len(self.units):
            raise InputError(f"a twin of {len(self.units)} units needs as many others: give a larger pool.")

    def what(self, alpha: float) -> What:
        values = alpha * self.values[:, None]
        made = {"clamp": Set, "add": Add, "scale": lambda value: Scale(1 + value)}
        return Only(self.units, made[self.mode](values))

    def twin(self, generator: torch.Generator, covariance: Tensor | None = None) -> Self:
        others = torch.tensor(sorted({*self.pool} - {*self.units}))
        units = others[torch.randperm(len(others), generator=generator)[: len(self.units)]]
        values = self.values
        if isinstance(self.components, Features) and self.mode != "scale":
            written = self.components.dictionary.W_dec[self.layer].norm(dim=-1).cpu()
            values = values * written[[*self.units]] / written[units]
        return replace(self, units=tuple(units.tolist()), values=values)


@EDITS.named("input")
@dataclass(frozen=True, eq=False, kw_only=True)
class InputEdit(Edit):
    """h ← h + α Σ_k c_k z_k, z_k of the same token at earlier layers of the same run (`sources`, layer → c). `size`:
    (components, width) of the layer. A twin adds a random `direction` at the norm of that sum."""

    kind: ClassVar[str] = "input"
    sources: Mapping[int, float]
    size: tuple[int, int]
    direction: Tensor | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        Inject(self.layer, self.sources)  # raises for sources that come later
        if self.direction is not None:
            object.__setattr__(self, "direction", unit(self.direction))

    @property
    def layers(self) -> tuple[int, ...]:
        return (*sorted(self.sources), self.layer)

    def what(self, alpha: float) -> What:
        return Inject(self.layer, {k: alpha * c for k, c in self.sources.items()}, self.direction)

    def twin(self, generator: torch.Generator, covariance: Tensor | None = None) -> Self:
        return replace(self, direction=drawn(torch.ones(self.size), generator, covariance))
