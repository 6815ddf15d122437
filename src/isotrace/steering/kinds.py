"""What is done to one layer of some components: the kinds of edit, each a plan of interventions at a strength α.

`h [components, width]` is what a token has there. At α = 0 every kind is the empty plan. A kind is saved by its name in
`EDITS`, and its `twin` does as much in a direction drawn at random.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.registry import Registry
from isotrace.dictionaries.features import Features
from isotrace.interventions import (
    Add,
    AddShare,
    Affine,
    Along,
    Components,
    Hookpoints,
    Inject,
    Intervention,
    Normed,
    Only,
    Plan,
    Scale,
    Select,
    Set,
    Tokens,
)
from isotrace.interventions.what import What
from isotrace.steering.vectors import drawn, unit
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Subject

Norm = Literal["none", "keep", "cap"]
EVERY = Tokens("real")
EDITS: Registry["type[Edit]"] = Registry("kind of edit", "isotrace.edits")


@dataclass(frozen=True, eq=False, kw_only=True)
class Edit(ABC):
    """An edit of `layer`, a number of the components' own, at the tokens `where`.

    `norm`: every token then has the norm that it had (`keep`), or one of at most `limit`, or of what it had where that
    was more (`cap`). Keeping it at many layers with a large α leaves nothing but the direction. `rounds`: those of an
    iterative decoding, from 0, in which the edit is on; None = all. Directions are `[components, width]`; of a layer of
    one component `[width]` will do.
    """

    kind: ClassVar[str]
    components: Components
    layer: int
    where: Tokens = EVERY
    norm: Norm = "none"
    limit: float | None = None
    rounds: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.norm not in get_args(Norm):
            raise InputError(f"{self.norm!r} is no way to treat norms: give one of {', '.join(get_args(Norm))}.")
        if (self.norm == "cap") != (self.limit is not None):
            raise InputError("norm='cap' needs the limit, and nothing else has one: give both or neither.")
        if self.norm != "none" and isinstance(self.components, Features):
            raise InputError("the norm of features is not that of the stream: give norm='none'.")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                value = value.detach().float().cpu()
                if not bool(torch.isfinite(value).all()):
                    raise InputError(f"{field.name} of the edit at layer {self.layer} holds NaN or infinity: refit it.")
                shaped = value[None] if value.dim() == 1 and field.name not in PER_UNIT else value
                object.__setattr__(self, field.name, shaped)

    @abstractmethod
    def what(self, alpha: float) -> What:
        """At a strength α other than 0."""

    @abstractmethod
    def twin(self, generator: torch.Generator, covariance: Tensor | None = None) -> Self:
        """The same with its direction drawn at random: isotropic, or from a normal law of `covariance [d, d]`, d =
        components · width, that of what flows. Kinds that act on single coordinates draw other coordinates, and ignore
        `covariance`."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Those that the intervention sees."""
        return (self.layer,)

    def plan(self, alpha: float) -> Plan:
        """Raises InputError for an α that is not finite."""
        if not abs(alpha) < torch.inf:
            raise InputError(f"α = {alpha} is no strength: give a finite number.")
        if alpha == 0:
            return Plan()
        what = self.what(alpha)
        if self.norm != "none":
            what = Normed(what, self.norm, self.limit)
        where = Select(self.layers) if self._pooled() else replace(self.where, layers=self.layers)
        return Plan.of(Intervention(self.components, what, where))

    def _pooled(self) -> bool:
        """Whether its components have a row per sequence."""
        if isinstance(self.components, Features):
            return is_pooled(self.components.dictionary.config.reads)
        return isinstance(self.components, Hookpoints) and is_pooled(self.components.names)

    def check(self, subject: Subject) -> None:
        """Raises InputError where the subject's components have other sizes, SubjectError where it has none such."""
        sizes = self.components.sizes(subject)
        if not 0 <= self.layer < len(sizes):
            raise InputError(f"there is no layer {self.layer} of {self.components.name}s: give 0 to {len(sizes) - 1}.")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor) and field.name not in PER_UNIT and value.shape[-2:] != sizes[self.layer]:
                found, there = [*value.shape[-2:]], [*sizes[self.layer]]
                raise InputError(f"{field.name} is {found}, layer {self.layer} of {self.components.name}s {there}.")


PER_UNIT = ("values",)
"""Fields with a number for every unit named, not for every component."""


@dataclass(frozen=True, eq=False, kw_only=True)
class _Directed(Edit):
    direction: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "direction", unit(self.direction))

    def twin(self, generator: torch.Generator, covariance: Tensor | None = None) -> Self:
        return replace(self, direction=drawn(self.direction, generator, covariance))


@EDITS.named("add")
@dataclass(frozen=True, eq=False, kw_only=True)
class AddEdit(_Directed):
    """h ← h + α s v̂. `scale` s: the median norm of h over calibration tokens, so that α is a share of the usual norm;
    None = of the token's own norm. `direction [tokens, components, width]` is one for every position; its mean square
    norm over positions is then 1."""

    kind: ClassVar[str] = "add"
    scale: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale is not None and not 0 < self.scale < torch.inf:
            raise InputError(f"a scale of {self.scale} is no norm: give the median norm of calibration tokens.")

    def what(self, alpha: float) -> What:
        return AddShare(alpha * self.direction) if self.scale is None else Add(alpha * self.scale * self.direction)


@EDITS.named("remove")
@dataclass(frozen=True, eq=False, kw_only=True)
class RemoveEdit(_Directed):
    """h ← h − α (h·v̂) v̂."""

    kind: ClassVar[str] = "remove"

    def what(self, alpha: float) -> What:
        return Along(self.direction, 0.0, alpha)


@EDITS.named("set")
@dataclass(frozen=True, eq=False, kw_only=True)
class SetEdit(_Directed):
    """h ← h + α (c − h·v̂) v̂. `target` c: a quantile of h·v̂ over positive examples. `mean [components, width]` of h over
    calibration tokens: a twin is set as far from its own mean as this from its."""

    kind: ClassVar[str] = "set"
    target: float
    mean: Tensor

    def what(self, alpha: float) -> What:
        return Along(self.direction, self.target, alpha)

    def twin(self, generator: torch.Generator, covariance: Tensor | None = None) -> Self:
        direction = drawn(self.direction, generator, covariance)
        moved = float((self.mean * (direction - self.direction)).sum())
        return replace(self, direction=direction, target=self.target + moved)


@EDITS.named("affine")
@dataclass(frozen=True, eq=False, kw_only=True)
class AffineEdit(Edit):
    """h ← (1 + α (ω − 1)) ⊙ h + α b. A twin has ω − 1 and b at other coordinates, with random signs."""

    kind: ClassVar[str] = "affine"
    scale: Tensor
    shift: Tensor

    def what(self, alpha: float) -> What:
        return Affine(1 + alpha * (self.scale - 1), alpha * self.shift)

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
