"""ε-sharpness: how far the loss rises nearby, in a ball, and in a box as wide as each parameter is large."""

import math

import torch

from isotrace.base.progress import Progress
from isotrace.transfer.curvature.loss import View, generator_for, normal
from isotrace.transfer.curvature.measure import Estimate, at_least, measure


@measure(
    "sharpness",
    cost="42 gradients",
    source="Keskar et al. 2017, arXiv 1609.04836; adaptive: Kwon et al. 2021, arXiv 2102.11600",
)
def sharpness(view: View, seed: int, progress: Progress, *, radius: float = 0.05, steps: int = 20) -> list[Estimate]:
    """max of L(θ + δ) − L(θ), as far as `steps` of ascent find it (a lower bound): `sharpness` over ‖δ‖ ≤ radius,
    `adaptive_sharpness` over |δ_i| ≤ radius · |θ_i|, which does not change when weights are rescaled."""
    at_least(1, steps=steps)
    loss, theta = view.loss, view.loss.at
    base, size = view.value(theta), theta.abs()
    start = normal(1, loss, generator_for(loss, seed))[0]

    def in_ball(delta: torch.Tensor) -> torch.Tensor:
        return radius * delta / delta.norm()

    def climbed(delta: torch.Tensor, adaptive: bool) -> float:
        best = -math.inf
        for step in progress(range(steps + 1), "adaptive sharpness" if adaptive else "sharpness"):
            value, gradient = view.gradient(theta + delta)
            best = max(best, value)
            if step == steps or not float(gradient.norm()):
                break
            # steps shrink from the whole radius, so that the last ones settle
            pace = radius * (1 - step / steps)
            if adaptive:
                delta = (delta + pace * size * gradient.sign()).clamp(-radius * size, radius * size)
            else:
                delta = in_ball(delta + pace * gradient / gradient.norm())
        return best - base

    return [
        Estimate("sharpness", climbed(in_ball(start), False)),
        Estimate("adaptive_sharpness", climbed(radius * size * start.sign(), True)),
    ]
