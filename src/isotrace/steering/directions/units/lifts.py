"""Lifts: what each neuron and head of an edit does alone, beside random ones of its layer, and only then all together.

A unit is patched with its own difference, at full strength, in sequences that chose nothing. A matched unit is another
of the same layer, patched along its own difference at the same norm: of what a neuron writes, of what a head gives.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import nan

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.datasets.tasks import batches
from isotrace.interventions import Heads, Plan, Residuals
from isotrace.interventions.hookpoints import Neurons
from isotrace.steering import AddEdit, Edit, FeatureEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions.closed_form.difference_in_means import Form
from isotrace.steering.directions.units.sublayer_budget import Differences, differences
from isotrace.steering.directions.units.token_mass import token_mass
from isotrace.steering.edits import Edits
from isotrace.steering.states import BATCH_TOKENS, How, pooled
from isotrace.subjects.subject import Subject


@dataclass(frozen=True)
class Lift:
    """`unit` of a `layer`, a `neuron` or a `head`: change of the metric when it alone is patched, and when each of its
    matched units is, none where its layer has no other."""

    kind: str
    layer: int
    unit: int
    lift: float
    random: tuple[float, ...]

    @property
    def above(self) -> float:
        """Over the mean of the matched units; NaN without any."""
        return self.lift - float(np.mean(self.random)) if self.random else nan

    @property
    def p(self) -> float:
        """Rank among the matched units; NaN without any."""
        return (1 + sum(x >= self.lift for x in self.random)) / (1 + len(self.random)) if self.random else nan


@dataclass(frozen=True)
class Lifts:
    """`whole`: change of the metric under all units together; `twins`: under as many matched ones."""

    units: tuple[Lift, ...]
    whole: float
    twins: tuple[float, ...]

    def rows(self) -> list[dict[str, float | int | str]]:
        names = ("kind", "layer", "unit", "lift", "above", "p")
        return [{name: getattr(one, name) for name in names} for one in self.units]


@torch.no_grad()
def lifts(
    subject: Subject, edits: Edits, chosen: Contrast, held: Contrast, *, tokens: str | None = None, draws: int = 8,
    inputs: int = 16, form: Form = "grouped", seed: int = 0,
) -> Lifts:  # fmt: skip
    """Of every unit of `edits`, which `sublayer_budget` fitted to `chosen`, in at most `inputs` negative sequences of
    `held`. Matched units have their differences from `chosen` too, so that both sides of the comparison are strange to
    what judges them.

    The metric is the mean log-odds of `tokens`, or, without, where `held` itself writes its side behind the last block
    (`differences`). Raises InputError for edits of other things than neurons and heads or of other data, and where
    `held` shares groups with `chosen`."""
    if edits.data != chosen.sha256:
        raise InputError("these edits were fitted to other sequences: give the contrast that they were fitted to.")
    if shared := {*chosen.groups} & {*held.groups}:
        raise InputError(f"group {min(shared)!r} also chose the units: hold out whole groups (Contrast.split).")
    examples = [held.examples[i] for i in held.negative[:inputs]]
    how: How = "last" if subject.objective == "causal" else "mean"
    found = differences(subject, chosen, form, how)
    value = _metric(subject, examples, differences(subject, held, form, how), tokens)
    plain, rng = value(Plan()), np.random.default_rng((seed, 9))
    units, pairs = [], list[list[Edit]]()
    for edit in edits.edits:
        for unit in _units(edit):
            alone = _alone(edit, unit)
            others = _matched(subject, edit, alone, found, rng.permutation(_others(subject, edit)), draws)
            random = tuple(value(one.plan(1.0)) - plain for one in others)
            kind = edit.components.name
            units.append(Lift(kind, edit.layer, unit, value(alone.plan(1.0)) - plain, random))
            pairs.append(others)
    n = min(map(len, pairs))
    twins = tuple(value(Plan.of(*(others[i].plan(1.0) for others in pairs))) - plain for i in range(n))
    return Lifts(tuple(units), value(edits.plan(1.0)) - plain, twins)


def _metric(subject: Subject, examples: list, found: Differences, tokens: str | None) -> Callable[[Plan], float]:
    last = subject.n_layers - 1

    def written(plan: Plan) -> float:
        return float(
            (pooled(subject, examples, Residuals(), (last,), found.how, plan=plan)[last] @ found.reference).mean()
        )

    def odds(plan: Plan) -> float:
        total = 0.0
        for _, batch in batches(examples, BATCH_TOKENS, subject):
            final = subject.run(batch, plan=plan, logits=False).final
            total += float(token_mass(subject, batch, final, tokens or "").sum())
        return total / len(examples)

    return written if tokens is None else odds


def _units(edit: Edit) -> list[int]:
    if isinstance(edit, FeatureEdit) and isinstance(edit.components, Neurons):
        return [*edit.units]
    if isinstance(edit, AddEdit) and isinstance(edit.components, Heads):
        return torch.nonzero(edit.direction.norm(dim=-1))[:, 0].tolist()
    raise InputError(f"lifts are of neurons and heads, not of a {edit.kind} of {edit.components.name}s: fit those.")


def _alone(edit: Edit, unit: int) -> Edit:
    if isinstance(edit, FeatureEdit):
        return _neuron(edit, unit, edit.values[edit.units.index(unit)])
    assert isinstance(edit, AddEdit)
    assert edit.scale is not None
    return _head(edit, unit, edit.direction[unit] * edit.scale)


def _neuron(edit: FeatureEdit, unit: int, value: Tensor) -> Edit:
    return replace(edit, units=(unit,), values=value[None], pool=(*edit.pool, unit))


def _head(edit: AddEdit, unit: int, vector: Tensor) -> Edit:
    direction = torch.zeros_like(edit.direction)
    direction[unit] = vector
    return replace(edit, direction=direction, scale=float(vector.norm()))


def _others(subject: Subject, edit: Edit) -> list[int]:
    """Units of its layer that are not its own: neurons of its pool, all heads."""
    pool = edit.pool if isinstance(edit, FeatureEdit) else range(subject.n_heads(edit.layer))
    return sorted({*pool} - {*_units(edit)})


def _matched(
    subject: Subject, edit: Edit, alone: Edit, found: Differences, others: np.ndarray, draws: int
) -> list[Edit]:  # fmt: skip
    """The first `draws` of `others` that differ between the sides."""
    made: list[Edit] = []
    if isinstance(edit, FeatureEdit):
        assert isinstance(alone, FeatureEdit)
        norms = subject.neuron_writes(edit.layer)[0].norm(dim=-1).cpu()
        values = found.at["neuron", edit.layer].float()
        size = alone.values[0].abs() * norms[alone.units[0]]
        for unit in others.tolist():
            if values[unit] != 0 and norms[unit] > 0:
                made.append(_neuron(edit, unit, values[unit].sign() * size / norms[unit]))
    else:
        assert isinstance(edit, AddEdit)
        assert isinstance(alone, AddEdit)
        assert alone.scale is not None
        vectors = found.at["head_out", edit.layer].float().unflatten(0, (len(edit.direction), -1))
        for unit in others.tolist():
            if vectors[unit].norm() > 0:
                made.append(_head(edit, unit, vectors[unit] / vectors[unit].norm() * alone.scale))
    return made[:draws]
