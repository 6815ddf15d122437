"""What is done to one layer of some components: the kinds of edit, each a plan of interventions at a strength α.

`h [components, width]` is what a token has there. At α = 0 every kind is the empty plan. A kind is saved by its name in
`EDITS`, and its `twin` does as much in a direction drawn at random.
"""

from abc import ABC, abstractmethod
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
    Along,
    Components,
    Hookpoints,
    Intervention,
    Normed,
    Plan,
    Select,
    Then,
    Tokens,
)
from isotrace.interventions.what import What
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
    iterative decoding, from 1, in which the edit is on; None = all. Directions are `[components, width]`; of a layer of
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
    """h ← h − α (h·v̂) v̂, or of several orthonormal directions `[n, components, width]` h − α Σ s_i (h·v̂_i) v̂_i, s_i in
    `shares`, None = 1. A twin of several draws as many orthonormal ones."""

    kind: ClassVar[str] = "remove"
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        Edit.__post_init__(self)
        rows = self.direction.flatten(-2).view(-1, self.direction.shape[-2:].numel())
        if len(rows) > 1 and not float((rows @ rows.T - torch.eye(len(rows))).abs().max()) < 1e-4:
            raise InputError("the directions to remove are not orthonormal: orthonormalise them (torch.linalg.qr).")
        if self.shares is not None and len(self.shares) != len(rows):
            raise InputError(f"{len(rows)} directions and {len(self.shares)} shares: give one for each.")
        object.__setattr__(self, "direction", self.direction if len(rows) > 1 else unit(self.direction))

    def what(self, alpha: float) -> What:
        share = alpha if self.shares is None else alpha * torch.tensor(self.shares)
        return Along(self.direction.view(-1, *self.direction.shape[-2:]), 0.0, share)

    def twin(self, generator: torch.Generator, covariance: Tensor | None = None) -> Self:
        rows = drawn(self.direction, generator, covariance).flatten(-2)
        rows = torch.linalg.qr(rows.view(-1, rows.shape[-1]).T).Q.T
        return replace(self, direction=rows.reshape(self.direction.shape))


@EDITS.named("set")
@dataclass(frozen=True, eq=False, kw_only=True)
class SetEdit(_Directed):
    """h ← h + α (c − h·v̂) v̂. `target` c: a quantile of h·v̂ over positive examples. `mean [components, width]` of h over
    calibration tokens: a twin is set as far from its own mean as this from its."""

    kind: ClassVar[str] = "set"
    target: float
    mean: Tensor

    def what(self, alpha: float) -> What:
        return Along(self.direction[None], self.target, alpha)

    def twin(self, generator: torch.Generator, covariance: Tensor | None = None) -> Self:
        direction = drawn(self.direction, generator, covariance)
        moved = float((self.mean * (direction - self.direction)).sum())
        return replace(self, direction=direction, target=self.target + moved)


@EDITS.named("swap")
@dataclass(frozen=True, eq=False, kw_only=True)
class SwapEdit(_Directed):
    """h ← h + α (s v̂ − β (h·û) û): of what h has along `source` û a `share` β goes, and `scale` s along v̂ comes. A twin
    has two other directions."""

    kind: ClassVar[str] = "swap"
    scale: float
    source: Tensor
    share: float

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "source", unit(self.source))

    def what(self, alpha: float) -> What:
        # what is added is the same for every h, so that it may come after
        gone, come = Along(self.source[None], 0.0, alpha * self.share), Add(alpha * self.scale * self.direction)
        return Then((gone, come))

    def twin(self, generator: torch.Generator, covariance: Tensor | None = None) -> Self:
        others = [drawn(one, generator, covariance) for one in (self.direction, self.source)]
        return replace(self, direction=others[0], source=others[1])


def unit(direction: Tensor) -> Tensor:
    """At unit norm; of `[tokens, components, width]` at unit mean square norm. Raises InputError for one of norm 0."""
    norm = float(direction.norm()) / (len(direction) if direction.dim() == 3 else 1) ** 0.5
    if not norm > 0:
        raise InputError("a direction of norm 0 points nowhere: the two sides do not differ there.")
    return direction if abs(norm - 1) < 1e-6 else direction / norm  # what is read again stays as it was, to the bit


def drawn(like: Tensor, generator: torch.Generator, covariance: Tensor | None) -> Tensor:
    """A random direction with the shape and, position by position, the norm of `like`."""
    noise = torch.randn(*like.shape[:-2], like.shape[-2:].numel(), generator=generator)
    if covariance is not None:
        values, vectors = torch.linalg.eigh(covariance.detach().double().cpu())
        noise = noise @ (vectors * values.clamp(min=0).sqrt()).T.float()
    norms = noise.norm(dim=-1, keepdim=True)
    return (noise / norms * like.flatten(-2).norm(dim=-1, keepdim=True)).view_as(like)


def covariance(rows: Tensor) -> Tensor:
    """`[d, d]` of `[tokens, d]`, of what flows, for twins inside it; float64."""
    centred = rows.double() - rows.double().mean(0)
    return centred.T @ centred / max(1, len(rows) - 1)
