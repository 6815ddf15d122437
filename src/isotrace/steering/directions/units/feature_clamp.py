"""Feature clamp: units of one number each, features of a dictionary or neurons, held at a value.

1. associate  on half of the groups: mean activation on the positive less that on the negative side, in standard
              deviations (selectivity); the best `candidates` of all layers
2. hold out   on the other half: only those stay whose selectivity has the same sign there
3. lift       where a metric is given: the median, over strengths, of its change per unit of strength when the unit is
              added to in held-out negative sequences (FOXP2's grid); only those that raise it stay
4. edit       the best `k` are clamped to α times their largest activation, or steered along what they write
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.datasets.tasks import batches
from isotrace.dictionaries.features import Features
from isotrace.interventions.components import Components
from isotrace.interventions.hookpoints import Hookpoints, Neurons
from isotrace.interventions.writers import Writers
from isotrace.steering import AddEdit, Edit, FeatureEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.directions.units.token_mass import token_mass
from isotrace.steering.states import BATCH_TOKENS, States, flowing, pooled, token_weights
from isotrace.subjects.subject import Subject

GRID = (0.5, 1.0, 2.0, 5.0, 10.0, 15.0)
Mode = Literal["clamp", "replace", "residual"]


@direction(
    "feature_clamp", labels="binary or terciles", cost="2N F; lift: candidates · 6 · inputs F", tuned="feature, value",
    components=Neurons, source="Templeton et al. 2024; Tsui et al. 2025 (InterPLM, ProtoMech); FOXP2 2025 (lift)",
)  # fmt: skip
def feature_clamp(
    fitting: Fitting, k: int = 1, mode: Mode = "clamp", tokens: str | None = None, candidates: int = 10,
    inputs: int = 16, seed: int = 0,
) -> list[Edit]:  # fmt: skip
    """The features, or neurons, that tell the sides apart on held-out groups, held at a value

    With `tokens` (`N,O`), which the edit is to make likelier, candidates are chosen by what adding to them does to the
    mean log-odds of these tokens in `inputs` held-out negative sequences. `mode`: `clamp` adds what changes to what the
    subject writes, so that what a dictionary does not explain stays; `replace` lets the dictionary's output stand in
    its place; `residual` adds the direction that a unit writes, wherever it writes. Raises InputError for components
    wider than a number, for too few groups, and where no candidate holds out or lifts."""
    parts, subject = fitting.components, fitting.subject
    if not isinstance(parts, Writers):
        raise InputError(f"feature_clamp needs features or neurons, not {parts.name}s: give --dictionary or neurons.")
    if mode not in get_args(Mode) or (mode == "replace" and not isinstance(parts, Features)):
        raise InputError(f"no mode {mode!r} here: give {', '.join(get_args(Mode))}; only a dictionary can replace.")
    chosen, held = fitting.contrast.split(seed=seed)
    selected = candidates_of(fitting, chosen, held, candidates)
    if tokens is not None:
        negative = [held.examples[i] for i in held.negative[:inputs]]
        lifts = [lift(subject, parts, layer, unit, negative, tokens) for layer, unit in selected]
        selected = [one for _, one in sorted(zip(lifts, selected, strict=True), reverse=True) if _ > 0]
    if not selected:
        raise InputError("no unit tells the held-out sides apart and moves the target: give more sequences or layers.")
    largest, active = extremes(fitting)
    edits: list[Edit] = []
    for layer in sorted({layer for layer, _ in selected[:k]}):
        units = [unit for at, unit in selected[:k] if at == layer]
        if mode == "residual":
            edits += written(fitting, parts, layer, units, largest[layer])
            continue
        acting = replace(parts, errors="drop") if mode == "replace" and isinstance(parts, Features) else parts
        edits.append(
            FeatureEdit(
                components=acting, layer=layer, units=tuple(units), values=largest[layer][units], mode="clamp",
                pool=tuple({*active[layer]} | {*units}),
            )
        )  # fmt: skip
    return edits


def selectivity(states: States, contrast: Contrast) -> dict[int, Tensor]:
    """Per layer `[units]`: mean of the positive less that of the negative side, in standard deviations of both; 0 for
    silent units."""
    used = torch.from_numpy(contrast.side != 0)
    weights = torch.from_numpy(contrast.weights)
    return {layer: weights @ x / x[used].std(0).clamp(min=1e-9) for layer, x in states.items()}


def candidates_of(fitting: Fitting, chosen: Contrast, held: Contrast, n: int) -> list[tuple[int, int]]:
    """(layer, unit) with the largest selectivity on `chosen` that have a positive one on `held`, the best first."""
    given = fitting.subject, fitting.components, fitting.layers
    scores = [selectivity(pooled(given[0], part.examples, *given[1:], fitting.usual), part) for part in (chosen, held)]
    rows = [(float(v), layer, i) for layer, x in scores[0].items() for i, v in enumerate(x.tolist()) if v > 0]
    return [(layer, i) for _, layer, i in sorted(rows, reverse=True)[:n] if scores[1][layer][i] > 0]


@torch.no_grad()
def lift(subject: Subject, parts: Components, layer: int, unit: int, examples: Sequence, tokens: str) -> float:
    """Median over GRID of the change, per unit of activation added, of the mean log-odds of `tokens`."""
    edit = FeatureEdit(
        components=parts, layer=layer, units=(unit,), values=torch.ones(1), mode="add",
        pool=tuple(range(parts.sizes(subject)[layer][0])),
    )  # fmt: skip
    changes = np.zeros(len(GRID))
    for _, batch in batches(examples, BATCH_TOKENS, subject):
        before = token_mass(subject, batch, subject.run(batch, logits=False).final, tokens)
        for i, alpha in enumerate(GRID):
            final = subject.run(batch, plan=edit.plan(alpha), logits=False).final
            after = token_mass(subject, batch, final, tokens)
            changes[i] += float((after - before).sum()) / alpha
    return float(np.median(changes)) / len(examples)


def extremes(fitting: Fitting) -> tuple[States, dict[int, list[int]]]:
    """(largest activation of each unit, units that are ever active), per layer, over real tokens."""
    largest: States = {}
    for _, batch in batches(fitting.contrast.examples, BATCH_TOKENS, fitting.subject):
        real = token_weights(fitting.subject, batch, "mean") > 0
        for layer, x in flowing(fitting.subject, fitting.components, fitting.layers, batch).items():
            top = (x[real] if x.shape[1] > 1 else x.flatten(0, 1)).amax(0).double().cpu()
            largest[layer] = torch.maximum(largest[layer], top) if layer in largest else top
    return largest, {layer: torch.nonzero(x > 0)[:, 0].tolist() for layer, x in largest.items()}


def written(fitting: Fitting, parts: Writers, layer: int, units: list[int], largest: Tensor) -> list[Edit]:
    """Along what `units` write at their largest activation together, at every place they write to."""
    sites, rows = parts.writes(fitting.subject), parts.rows(fitting.subject, layer, slice(None)).double().cpu()
    total = (largest[units, None] * rows[units]).sum(0)
    targets = parts.targets(layer)
    return [
        AddEdit(components=Hookpoints((sites[target],)), layer=0, direction=part, scale=float(part.norm()))
        for target, part in zip(targets, total.chunk(len(targets)), strict=True)
        if float(part.norm()) > 0
    ]
