"""What a direction method is: it takes a subject and a contrast and gives edits. One file each, under one registry.

Every method goes the same way: what it needs is checked, activations are read, edits are made of them, and the cosine
of every edit with the direction of every confound is set beside it.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.identity import identity
from isotrace.base.progress import Progress, silent
from isotrace.base.registry import Registry
from isotrace.interventions.components import Components
from isotrace.interventions.hookpoints import Residuals
from isotrace.interventions.where import Tokens
from isotrace.steering import AddEdit, AffineEdit, Edit, FeatureEdit, GainEdit, PathEdit, SetEdit, SwapEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.edits import Edits
from isotrace.steering.states import How, States, by_position, checked_layers, pooled, usual_lengths, weighted
from isotrace.subjects.subject import Subject


@dataclass(frozen=True, eq=False)
class Fitting:
    """What a method is given. `layers`: those of `components` that are edited, in order. `told`: what a method has to
    say of its fit beside the edits, name → number; it goes among their settings."""

    subject: Subject
    contrast: Contrast
    components: Components
    layers: tuple[int, ...]
    progress: Progress = silent
    told: dict[str, float] = field(default_factory=dict)

    @property
    def usual(self) -> How:
        """Where activations are read: over all tokens, or, of a causal subject, at the last, which has seen them."""
        return "last" if self.subject.objective == "causal" else "mean"

    @property
    def sites(self) -> Tokens:
        """Masked tokens; of a subject that reads on, those from the first written one on: each has been the last."""
        return Tokens("masked" if self.subject.objective == "masked" else "generated")

    @cached_property
    def lengths(self) -> dict[int, float]:
        """The median norm of a token's state per layer."""
        return usual_lengths(self.subject, self.contrast.examples, self.components, self.layers)

    def states(self, how: How | None = None) -> States:
        """float64 `[n, d]` per layer."""
        return pooled(
            self.subject, self.contrast.examples, self.components, self.layers, how or self.usual, self.progress
        )

    def positions(self) -> Iterator[tuple[int, States]]:
        """(row of the contrast, float64 `[tokens, d]` per layer), special tokens included."""
        return by_position(self.subject, self.contrast.examples, self.components, self.layers, self.progress)

    def sums(self, weights: np.ndarray, how: How | None = None) -> tuple[States, dict[int, float]]:
        """(Σ weights · state per layer, median norms), see `steering.states.weighted`."""
        given = self.subject, self.contrast.examples, self.components, self.layers
        return weighted(*given, weights, how or self.usual, self.progress)

    def shaped(self, layer: int, x: Tensor) -> Tensor:
        """`[..., components · width]` as `[..., components, width]`."""
        return x.unflatten(-1, self.components.sizes(self.subject)[layer])


Kind = Literal["add", "set"]
QUANTILE = 0.5


@dataclass(frozen=True)
class Direction:
    """`run(fitting, **settings)` gives the edits. `labels`, `pairs`, `gradients`, `cost` (N examples a side, F = one
    forward pass of the subject), `tuned` (what is chosen on development starts): what it needs, in words. `about`: one
    line. `source`: where it was published. `components`: the kind edited where none is named, from layer `first` on."""

    name: str
    run: Callable[..., Sequence[Edit]]
    about: str
    labels: str
    pairs: str
    gradients: str
    cost: str
    tuned: str
    source: str
    components: Callable[[], Components] = Residuals
    first: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        """Name → default, of those that `fit` takes beside its own; those without a default must be given."""
        found = [*inspect.signature(self.run).parameters.values()][1:]
        return {p.name: ... if p.default is p.empty else p.default for p in found}

    def fit(
        self, subject: Subject, contrast: Contrast, *, components: Components | None = None,
        layers: Sequence[int] = (), kind: Kind | None = None, quantile: float | None = None,
        progress: Progress = silent, **settings: Any,
    ) -> Edits:  # fmt: skip
        """`layers` of `components`, none: all. `kind`: None, as the method gives it; `set`, of methods that add one
        direction: h·v̂ is set to its `quantile` (by default 0.5) over the positive side instead. Raises InputError for a
        setting it does not know or lacks, and where the contrast does not hold what it needs; SubjectError for a
        subject in fewer digits than float32."""
        subject.require_float32("fitting a direction")
        if kind not in (None, *get_args(Kind)) or (quantile is not None and kind != "set"):
            raise InputError(f"kind={kind!r}, quantile={quantile!r}: give kind=set and a quantile, or kind=add alone.")
        if unknown := [name for name in settings if name not in self.settings]:
            known = ", ".join((*self.settings, "kind", "quantile"))
            raise InputError(f"{self.name} has no setting {unknown[0]!r}: it takes {known}.")
        if lacking := [n for n, default in self.settings.items() if default is ... and n not in settings]:
            raise InputError(f"{self.name} needs the setting {lacking[0]!r}: give it.")
        parts = self.components() if components is None else components
        chosen = checked_layers(subject, parts, layers)
        fitting = Fitting(subject, contrast, parts, chosen if layers else chosen[self.first :] or chosen, progress)
        edits = tuple(self.run(fitting, **settings))
        if not edits:
            raise InputError(f"{self.name} found nothing to edit in these data: give more sequences or other layers.")
        if kind is not None and (wrong := [e for e in edits if not _adds(e, alike=kind == "set")]):
            what = "a direction for every position" if wrong[0].kind == "add" else f"edits of kind {wrong[0].kind}"
            raise InputError(f"{self.name} gives {what} here, not one direction to {kind}: leave out kind.")
        if kind == "set":
            settings |= {"kind": kind, "quantile": QUANTILE if quantile is None else quantile}
            edits = set_at(fitting, edits, settings["quantile"], settings.get("how"))
        said = {n: v if isinstance(v, str | int | float | bool | None) else identity(v) for n, v in settings.items()}
        said |= {"layers": [*fitting.layers], "components": parts.name, "held": [*contrast.held], **fitting.told}
        return Edits(edits, self.name, said, confound_cosines(fitting, edits), contrast.sha256)


DIRECTIONS: Registry[Direction] = Registry(
    "method of steering",
    "isotrace.directions",
    {
        name: f"isotrace.steering.directions.{module}"
        for name, module in {
            "difference_in_means": "closed_form.difference_in_means",
            "control_vector": "closed_form.control_vector",
            "regime_delta": "closed_form.regime_delta",
            "probe": "closed_form.probe",
            "gradient": "closed_form.probe",
            "linear_transport": "maps.linear_transport",
            "lineas": "maps.lineas",
            "austeer": "units.austeer",
            "feature_clamp": "units.feature_clamp",
            "foxp2": "units.foxp2",
            "circuit_clamp": "units.circuit_clamp",
            "snmf": "units.snmf",
            "sublayer_budget": "units.sublayer_budget",
            "rules": "concepts.rules",
            "manifold": "units.manifold",
            "eigenshift": "readouts.eigenshift",
            "anchored": "readouts.anchored",
            "injection": "readouts.injection",
        }.items()
    },
)


def direction(
    name: str, *, labels: str, cost: str, tuned: str, source: str, pairs: str = "no", gradients: str = "no",
    components: Callable[[], Components] = Residuals, first: int = 0,
) -> Callable[[Callable[..., Sequence[Edit]]], Callable[..., Sequence[Edit]]]:  # fmt: skip
    """Decorator of `run`; its docstring's first line says what the method is."""

    def add(run: Callable[..., Sequence[Edit]]) -> Callable[..., Sequence[Edit]]:
        about = (run.__doc__ or "").partition("\n\n")[0].replace("\n    ", " ").strip()
        entry = Direction(name, run, about, labels, pairs, gradients, cost, tuned, source, components, first)
        DIRECTIONS.register(name, entry)
        return run

    return add


def needs() -> list[dict[str, str]]:
    """What each method needs, a row each, in the order of shipping."""
    columns = ("name", "labels", "pairs", "gradients", "cost", "tuned", "about", "source")
    return [{column: getattr(entry, column) for column in columns} for entry in DIRECTIONS.values()]


def _adds(edit: Edit, alike: bool) -> bool:
    """A direction; `alike`: the same at every position."""
    return isinstance(edit, AddEdit) and (edit.direction.dim() == 2 or not alike)


def set_at(fitting: Fitting, edits: Sequence[Edit], quantile: float, how: How | None = None) -> tuple[SetEdit, ...]:
    """In place of `edits` that add one direction v̂ each: h·v̂ is set to its `quantile` over the positive side, where a
    sequence counts once, by the state that the method reads of it. A twin is measured from the mean over all
    sequences. Raises InputError for a quantile that is none."""
    if not 0 <= quantile <= 1:
        raise InputError(f"quantile={quantile} is none: give a number from 0 to 1, as 0.5 for the median.")
    states: dict[int, States] = {}
    for parts in {id(edit.components): edit.components for edit in edits}.values():
        layers = tuple(sorted({edit.layer for edit in edits if edit.components is parts}))
        given = fitting.subject, fitting.contrast.examples, parts, layers, how or fitting.usual, fitting.progress
        states[id(parts)] = pooled(*given)
    found = []
    for edit in edits:
        assert isinstance(edit, AddEdit)
        x, place = states[id(edit.components)][edit.layer], {f.name: getattr(edit, f.name) for f in fields(Edit)}
        along = x[fitting.contrast.positive] @ edit.direction.flatten().double()
        mean = x.mean(0).view_as(edit.direction)
        found.append(SetEdit(**place, direction=edit.direction, target=float(along.quantile(quantile)), mean=mean))
    return tuple(found)


def confound_cosines(fitting: Fitting, edits: Sequence[Edit]) -> dict[str, float]:
    """Confound → cosine of what an edit adds with the confound's direction, the covariance of activations with it; the
    largest in size where several layers are edited. NaN where activations do not follow the confound at all."""
    names, found = [*fitting.contrast.confounds], dict[str, float]()
    moving = [edit for edit in edits if edit.kind != "input"]  # which adds what flows, no fixed vector
    if not names or not moving:
        return found
    columns = np.stack([fitting.contrast.confounds[name] for name in names], 1)
    confounds = (columns - columns.mean(0)) / columns.std(0) / len(columns)
    weights = np.column_stack([means_of(fitting.contrast), confounds])
    for parts in {id(edit.components): edit.components for edit in moving}.values():
        here = [edit for edit in moving if edit.components is parts]
        layers = tuple(sorted({edit.layer for edit in here}))
        given = fitting.subject, fitting.contrast.examples, parts, layers
        sums, _ = weighted(*given, weights, fitting.usual)
        for edit in here:
            moved, others = moved_by(edit, sums[edit.layer][:2]), sums[edit.layer][2:]
            cosines = (others @ moved) / (others.norm(dim=-1) * moved.norm())
            for name, cosine in zip(names, cosines.tolist(), strict=True):
                known = found.get(name, np.nan)
                found[name] = cosine if not abs(cosine) <= abs(known) else known
    return found


def means_of(contrast: Contrast) -> np.ndarray:
    """float64 `[n, 2]`: weights of the mean over all sequences, and over the negative side."""
    negative = contrast.side < 0
    return np.column_stack([np.full(len(contrast), 1 / len(contrast)), negative / negative.sum()])


def moved_by(edit: Edit, means: Tensor) -> Tensor:
    """float64 `[d]`: where an edit of small strength moves the mean state, `means [2, d]` as `means_of` weighs them: a
    map and a swap that of the negative side, which they were fitted to, a gain that of all."""
    if isinstance(edit, AffineEdit):
        return (edit.scale.flatten().double() - 1) * means[1] + edit.shift.flatten().double()
    if isinstance(edit, GainEdit):
        return edit.beta.flatten().double() * means[0]
    if isinstance(edit, SwapEdit):
        source = edit.source.flatten().double()
        return edit.scale * edit.direction.flatten().double() - edit.share * (means[1] @ source) * source
    if isinstance(edit, PathEdit):
        return edit.points[-1].flatten().double()
    if isinstance(edit, FeatureEdit):
        moved = torch.zeros_like(means[0])
        moved[[*edit.units]] = edit.values.double()
        return moved
    direction = getattr(edit, "direction").double()  # noqa: B009
    return (direction.mean(0) if direction.dim() == 3 else direction).flatten()
