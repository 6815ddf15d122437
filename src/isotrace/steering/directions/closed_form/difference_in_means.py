"""Difference in means: what the positive side has more of than the negative (CAA, Rimsky et al. 2024; DiffMean,
Wu et al. 2025), over pairs of relatives, or within groups (Wang et al. 2025, emotion circuits)."""

from typing import Literal

import numpy as np

from isotrace.base.errors import InputError
from isotrace.steering import AddEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.states import How

Form = Literal["plain", "paired", "grouped"]


@direction(
    "difference_in_means", labels="binary or terciles", pairs="helpful", cost="2N F", tuned="layers, positions",
    source="Rimsky et al. 2024 (CAA); Wu et al. 2025 (DiffMean); Wang et al. 2025 (group-centred)",
)  # fmt: skip
def difference_in_means(fitting: Fitting, form: Form = "plain", how: How | None = None) -> list[AddEdit]:
    """The mean of the positive side less that of the negative

    `form`: of all sequences; `paired`, the mean difference of pairs; `grouped`, within every group first and then over
    groups. Confounds that the contrast holds fixed are, in the plain form. `how`: mean over tokens or the last one, by
    default as the objective reads. Raises InputError for a form without pairs or groups of both sides."""
    sums, lengths = fitting.sums(form_weights(fitting.contrast, form)[:, None], how)
    return [
        AddEdit(
            components=fitting.components, layer=layer, direction=fitting.shaped(layer, total[0]), scale=lengths[layer]
        )
        for layer, total in sorted(sums.items())
    ]


def form_weights(contrast: Contrast, form: Form) -> np.ndarray:
    """float64 `[n]`, of sum 0: the direction is Σ weights · h."""
    if form == "plain":
        return contrast.weights
    contrast.need_sides(f"the {form} difference in means")
    if form == "paired":
        pairs, weights = contrast.need_pairs("the paired difference in means", 1), np.zeros(len(contrast))
        np.add.at(weights, pairs[:, 0], 1 / len(pairs))
        np.add.at(weights, pairs[:, 1], -1 / len(pairs))
        return weights
    if form == "grouped":
        of_classes = len(contrast.classes) > 2
        codes = np.where(contrast.side != 0, contrast.values if of_classes else contrast.side, np.nan)
        return group_weights(codes, contrast.groups, float(codes[contrast.positive[0]]))
    raise InputError(f"no form {form!r} of a difference in means: give plain, paired or grouped.")


def group_weights(codes: np.ndarray, groups: np.ndarray, wanted: float) -> np.ndarray:
    """Weights of category c = `wanted`: mean over groups g of (mean of c in g − mean over categories of their means in
    g), less the mean of that over all c. `codes` `[n]`: the category of each sequence, NaN for none. Every group counts
    alike, however many it holds. Raises InputError where no group holds `wanted` and another."""
    kinds = np.unique(codes[~np.isnan(codes)])
    table, used = np.zeros((len(kinds), len(codes))), np.zeros(len(kinds))
    for group in dict.fromkeys(groups):
        members = {k: (groups == group) & (codes == kind) for k, kind in enumerate(kinds)}
        means = {k: rows / rows.sum() for k, rows in members.items() if rows.any()}
        if len(means) > 1:
            centre = np.mean([*means.values()], axis=0)
            for k, mean in means.items():
                table[k] += mean - centre
                used[k] += 1
    at = int(np.flatnonzero(kinds == wanted)[0])
    if not used[at]:
        raise InputError("no group holds both sides, so none can be centred: name other groups, or use another form.")
    table /= np.maximum(used, 1)[:, None]
    return table[at] - table.mean(0)
