"""AUSteer: the few units that stand higher in nearly every positive of a pair, or lower (activation units, 2026).

The momentum of unit i over N pairs is β = sign(n⁺ − n⁻) · max(n⁺, n⁻) / N, n⁺ of them with a higher activation in the
positive and n⁻ with a lower; equal ones, as of silent units, count in N and for neither. A unit is kept where a sign
test says that its side is no chance (Benjamini and Hochberg over all units of all layers).
"""

from typing import Literal

import torch
from scipy.stats import binom, false_discovery_control
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.interventions.hookpoints import Neurons
from isotrace.steering import AddEdit, FeatureEdit, GainEdit
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.states import How, States

Q = 0.05


@direction(
    "austeer", labels="binary", pairs="yes", cost="2N F", tuned="k, layers", components=Neurons,
    source="AUSteer (activation units), 2026",
)  # fmt: skip
def austeer(
    fitting: Fitting, k: int = 20, mode: Literal["gain", "shift"] = "gain", q: float = Q, how: How | None = None
) -> list[GainEdit | FeatureEdit | AddEdit]:
    """The k units, over all layers, that most pairs agree on

    `mode`: `gain` multiplies a unit by 1 + αβ, which pushes a negative activation the other way; `shift` adds αβσ, σ
    its standard deviation. Raises InputError for fewer than two pairs, and where no unit passes the test at `q`."""
    if mode not in ("gain", "shift") or k < 1:
        raise InputError(f"austeer takes mode gain or shift and k of 1 or more, not {mode!r} and {k}.")
    pairs = torch.from_numpy(fitting.contrast.need_pairs("austeer"))
    states = fitting.states(how)
    chosen = ranked(states, pairs, q)[:k]
    if not chosen:
        raise InputError(f"no unit is on one side in enough of the {len(pairs)} pairs (q < {q}): give more pairs.")
    edits: list[GainEdit | FeatureEdit | AddEdit] = []
    for layer in sorted({layer for layer, *_ in chosen}):
        beta = states[layer].new_zeros(states[layer].shape[1])
        for _, unit, momentum in (one for one in chosen if one[0] == layer):
            beta[unit] = momentum
        if mode == "gain":
            edits.append(GainEdit(components=fitting.components, layer=layer, beta=fitting.shaped(layer, beta)))
            continue
        shift = beta * states[layer].std(0)
        if fitting.components.sizes(fitting.subject)[layer][1] == 1:
            edits.append(shifted(fitting, layer, shift, states[layer].std(0) > 0))
        else:
            given = {"components": fitting.components, "layer": layer, "scale": float(shift.norm())}
            edits.append(AddEdit(**given, direction=fitting.shaped(layer, shift)))
    return edits


def shifted(fitting: Fitting, layer: int, shift: Tensor, active: Tensor) -> FeatureEdit:
    """What adds `shift [units]` to units of one number each; twins have it at other `active` ones, or at any where too
    few are."""
    units = torch.nonzero(shift)[:, 0]
    enough = int((active & (shift == 0)).sum()) >= len(units)
    pool = torch.nonzero(active | (shift != 0))[:, 0] if enough else torch.arange(len(shift))
    return FeatureEdit(
        components=fitting.components, layer=layer, units=tuple(units.tolist()), values=shift[units], mode="add",
        pool=tuple(pool.tolist()),
    )  # fmt: skip


def momentum(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """(β, p of the sign test among the pairs that differ) `[units]` of states `[pairs, units]`."""
    higher, lower = (positive > negative).sum(0), (positive < negative).sum(0)
    most = torch.maximum(higher, lower)
    beta = (higher - lower).sign() * most.double() / len(positive)
    tail = binom.sf(most.numpy() - 1, (higher + lower).numpy(), 0.5)
    return beta, torch.from_numpy(2 * tail).clamp(max=1)


def ranked(states: States, pairs: Tensor, q: float) -> list[tuple[int, int, float]]:
    """(layer, unit, β) of every unit with q-value below `q`, by |β|, and of equal ones by their mean difference in
    standard deviations of the differences."""
    found = []
    for layer, x in sorted(states.items()):
        positive, negative = x[pairs[:, 0]], x[pairs[:, 1]]
        beta, p = momentum(positive, negative)
        apart = positive - negative
        effect = apart.mean(0).abs() / apart.std(0, correction=0).clamp(min=1e-12)
        found += [(layer, i, *row) for i, row in enumerate(torch.stack([beta, p, effect], 1).tolist())]
    values = false_discovery_control([p for *_, p, _ in found])
    kept = [one for one, value in zip(found, values, strict=True) if value < q and one[2]]
    kept.sort(key=lambda one: (-abs(one[2]), -one[4]))
    return [(layer, unit, beta) for layer, unit, beta, *_ in kept]
