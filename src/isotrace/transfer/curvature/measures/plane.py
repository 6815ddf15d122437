"""The loss on a plane through the parameters."""

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress
from isotrace.transfer.curvature.loss import Loss, View, generator_for, normal
from isotrace.transfer.curvature.measure import Estimate, at_least, measure


@measure("plane", cost="441 values", source="Li et al. 2018, arXiv 1712.09913, §4 (filter normalisation)")
def plane(view: View, seed: int, progress: Progress, *, points: int = 21, extent: float = 1.0) -> list[Estimate]:
    """Mean and largest rise of the loss on a plane of two random filter-normalised directions, and the deepest fall
    below it: 0 where no point of the plane is lower."""
    found = surface(view, filter_normalised(view.loss, 2, seed), progress, points=points, extent=extent)
    rise = found - found[points // 2, points // 2]
    return [
        Estimate("plane_mean_rise", float(rise.mean())),
        Estimate("plane_max_rise", float(rise.max())),
        Estimate("plane_max_fall", float(-rise.min())),
    ]


def filter_normalised(loss: Loss, n: int, seed: int) -> Tensor:
    """`[n, P]` random directions: every output row of a matrix as long as that row of the parameters, biases and
    norms 0."""
    directions = normal(n, loss, generator_for(loss, seed))
    for block in loss.blocks:
        part = block.of(directions)
        if len(block.shape) < 2:
            part.zero_()
            continue
        weight = block.of(loss.at)
        rest = [d for d in range(weight.ndim) if d != block.outputs]
        part *= weight.norm(dim=rest, keepdim=True) / part.norm(dim=[d + 1 for d in rest], keepdim=True)
    return directions


def surface(view: View, directions: Tensor, progress: Progress, *, points: int = 21, extent: float = 1.0) -> Tensor:
    """float64 `[points, points]`: L(θ + a·d₁ + b·d₂), a and b from −extent to extent; `directions [2, P]`, such as
    random ones, or the first two of a trajectory (`maps.ParameterMap.axes`). `points` is odd: θ is in the middle."""
    at_least(3, points=points)
    if points % 2 == 0:
        raise InputError(f"points = {points}: give an odd number, so that one is in the middle.")
    shares = torch.linspace(-extent, extent, points).tolist()
    values = [
        [view.value(view.loss.at + a * directions[0] + b * directions[1]) for b in shares]
        for a in progress(shares, "plane")
    ]
    return torch.tensor(values, dtype=torch.float64)
