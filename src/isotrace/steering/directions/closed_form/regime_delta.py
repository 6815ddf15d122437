"""Regime delta tensors: the difference of two regimes with its positions kept (Fear et al. 2025, physics steering)."""

from typing import Literal, get_args

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.steering import AddEdit
from isotrace.steering.directions.direction import Fitting, direction

Mode = Literal["full", "pooled", "padded", "interpolated"]


@direction(
    "regime_delta", labels="binary or terciles", pairs="helpful", cost="2N F", tuned="layers, mode",
    source="Fear et al. 2025 (physics steering)",
)  # fmt: skip
def regime_delta(fitting: Fitting, mode: Mode = "full", standardise: bool = True) -> list[AddEdit]:
    """The mean of the positive side less that of the negative at every position, in shares of the state's own norm

    `mode`: `full` for sequences of one length in tokens (variants of one sequence); `padded`, where each ends where it
    ends; `interpolated`, all stretched to the median length; `pooled`, the mean over the positions of any sequence.
    `standardise`: every sequence's tensor to mean 0 and variance 1 over all its entries first. Raises InputError for
    unequal lengths in mode full, and for confounds that are held by weights."""
    if mode not in get_args(Mode):
        raise InputError(f"no mode {mode!r} of a regime delta: give {', '.join(get_args(Mode))}.")
    contrast = fitting.contrast
    contrast.need_sides("a regime delta")
    lengths = [len(e.ids) for e, side in zip(contrast.examples, contrast.side, strict=True) if side]
    if mode == "full" and len({*lengths}) > 1:
        raise InputError(
            f"sequences of {min(lengths)} to {max(lengths)} tokens have no positions in common: give variants of one "
            "sequence, or mode pooled, padded or interpolated."
        )
    size = {"pooled": 1, "interpolated": int(torch.tensor(lengths).median())}.get(mode, max(lengths))
    totals: dict[int, Tensor] = {}
    counts = torch.zeros(2, size)
    for row, states in fitting.positions():
        side = int(contrast.side[row])
        if not side:
            continue
        real = ~fitting.subject.special(torch.from_numpy(contrast.examples[row].ids)).cpu()
        end = size
        for layer, x in states.items():
            x = (x - x.mean()) / x.std(correction=0).clamp(min=1e-12) if standardise else x
            x = x[real].mean(0, keepdim=True) if mode == "pooled" else x
            x = stretched(x, size) if mode == "interpolated" else x
            totals.setdefault(layer, x.new_zeros(2, size, x.shape[1]))[int(side < 0), : len(x)] += x
            end = len(x)
        counts[int(side < 0), :end] += 1
    edits = []
    for layer, (positive, negative) in sorted(totals.items()):
        shared = (counts > 0).all(0)[:, None]  # where one side has no sequence so long, there is no difference
        delta = (positive / counts[0, :, None] - negative / counts[1, :, None]).where(shared, 0.0)
        shaped = fitting.shaped(layer, delta[0] if mode == "pooled" else delta)
        edits.append(AddEdit(components=fitting.components, layer=layer, direction=shaped, scale=None))
    return edits


def stretched(x: Tensor, size: int) -> Tensor:
    """`[tokens, d]` as `[size, d]`, linear between tokens, the first and the last in place."""
    return torch.nn.functional.interpolate(x.T[None], size, mode="linear", align_corners=True)[0].T
