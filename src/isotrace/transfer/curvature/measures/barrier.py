"""The barrier on the straight line between two models (linear mode connectivity)."""

import torch

from isotrace.base.progress import Progress
from isotrace.transfer.curvature.loss import View
from isotrace.transfer.curvature.measure import Estimate, at_least, measure


@measure(
    "barrier",
    cost="11 values",
    source="Frankle et al. 2020, arXiv 1912.05671; Entezari et al. 2022, arXiv 2110.06296",
    needs=("other",),
)
def barrier(view: View, seed: int, progress: Progress, *, points: int = 11) -> list[Estimate]:
    """`barrier` = max over α of L((1 − α)θ₁ + αθ₂) − (1 − α)L₁ − αL₂, 0 at the ends, so never below 0; `barrier_at`:
    where; `other_loss` − `own_loss` beside it."""
    losses, rises = along(view, progress, points)
    best = int(rises.argmax())
    return [
        Estimate("barrier", float(rises[best])),
        Estimate("barrier_at", best / (points - 1), None, "" if rises[best] > 0 else "no rise: the first point"),
        Estimate("own_loss", float(losses[0])),
        Estimate("other_loss", float(losses[-1])),
    ]


def along(view: View, progress: Progress, points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(L, its rise above the chord), float64 `[points]`, evenly from the loss's own parameters to the other's."""
    at_least(3, points=points)
    first, second = view.loss.at, view.other
    assert second is not None  # `needs`
    shares = torch.linspace(0, 1, points, dtype=torch.float64)
    values = [view.value(torch.lerp(first, second, float(a))) for a in progress(shares.tolist(), "barrier")]
    losses = torch.tensor(values, dtype=torch.float64)
    rises = losses - torch.lerp(losses[0], losses[-1], shares)
    rises[[0, -1]] = 0.0  # by definition; rounding apart
    return losses, rises
