"""An edit along a path: what is added turns with its strength."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.interventions import Add
from isotrace.interventions.what import What
from isotrace.steering.kinds import EDITS, Edit


@EDITS.named("path")
@dataclass(frozen=True, eq=False, kw_only=True)
class PathEdit(Edit):
    """h ← h + s(α), s piecewise linear through `points [points, components, width]` from 0 at α = 0 to the last of them
    at α = 1; beyond it goes on as it ends, and for α < 0 as it begins. A twin is the same path in a random frame."""

    kind: ClassVar[str] = "path"
    points: Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.points.dim() != 3 or len(self.points) < 2 or bool(self.points[0].any()) or not bool(self.points.any()):
            raise InputError("a path starts at 0 and leads somewhere: give points [points, components, width].")

    def what(self, alpha: float) -> What:
        return Add(self.at(alpha))

    def at(self, alpha: float) -> Tensor:
        """`[components, width]`."""
        place = alpha * (len(self.points) - 1)
        low = min(max(int(place // 1), 0), len(self.points) - 2)
        return self.points[low] + (place - low) * (self.points[low + 1] - self.points[low])

    def twin(self, generator: torch.Generator, covariance: Tensor | None = None) -> Self:
        flat = self.points.flatten(1)
        _, sizes, axes = torch.linalg.svd(flat, full_matrices=False)
        axes = axes[sizes > 1e-6 * sizes[0]]
        noise = torch.randn(axes.shape, generator=generator)
        if covariance is not None:
            values, vectors = torch.linalg.eigh(covariance.detach().double().cpu())
            noise = noise @ (vectors * values.clamp(min=0).sqrt()).T.float()
        frame = torch.linalg.qr(noise.T).Q.T
        return replace(self, points=(flat @ axes.T @ frame).view_as(self.points))
