"""Difference in means: what the positive side has more of than the negative (CAA, Rimsky et al. 2024; DiffMean,
Wu et al. 2025), over pairs of relatives, or within groups (Wang et al. 2025, emotion circuits); over all tokens, or
position by position (after Fear et al. 2025, physics steering)."""

from typing import Literal, get_args

import numpy as np

from isotrace.base.errors import InputError
from isotrace.steering import AddEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.states import How, States, weighted_by_position

Form = Literal["plain", "paired", "grouped"]
By = Literal["token", "position"]


@direction(
    "difference_in_means", labels="binary or terciles", pairs="helpful", cost="2N F", tuned="layers, positions",
    source="Rimsky et al. 2024 (CAA); Wu et al. 2025 (DiffMean); Wang et al. 2025 (group-centred)",
)  # fmt: skip
def difference_in_means(
    fitting: Fitting, form: Form = "plain", how: How | None = None, by: By = "token"
) -> list[AddEdit]:  # fmt: skip
    """The mean of the positive side less that of the negative

    `form`: of all sequences; `paired`, the mean difference of pairs; `grouped`, within every group first and then over
    groups. Confounds that the contrast holds fixed are, in the plain form. `how`: mean over tokens or the last one, by
    default as the objective reads. `by`: one direction for all tokens, or one for every `position` of sequences of one
    length, as variants of one protein have, where a difference that changes its sign along the sequence is none in the
    mean; 0 at special tokens. Raises InputError for a form without pairs or groups of both sides and, by position, for
    sequences of unequal length and with `how`."""
    if by not in get_args(By):
        raise InputError(f"no difference in means by {by!r}: give token or position.")
    weights = form_weights(fitting.contrast, form)
    sums, lengths = fitting.sums(weights[:, None], how) if by == "token" else _by_position(fitting, weights, how)
    return [
        AddEdit(
            components=fitting.components, layer=layer, scale=lengths[layer],
            direction=fitting.shaped(layer, total[0] if by == "token" else total),
        )
        for layer, total in sorted(sums.items())
    ]  # fmt: skip


def _by_position(fitting: Fitting, weights: np.ndarray, how: How | None) -> tuple[States, dict[int, float]]:
    if how is not None:
        raise InputError(f"how={how!r} pools over the tokens that by='position' keeps apart: give one of the two.")
    rows = np.flatnonzero(weights)  # others, as the middle tercile, may be of any length
    examples = [fitting.contrast.examples[i] for i in rows]
    given = fitting.subject, examples, fitting.components, fitting.layers
    return weighted_by_position(*given, weights[rows], fitting.progress)


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
