"""The trace of the Hessian and the square of its Frobenius norm, from the same random products."""

import torch

from isotrace.base.progress import Progress
from isotrace.transfer.curvature.loss import View, generator_for, signs
from isotrace.transfer.curvature.measure import Estimate, at_least, mean_and_error, measure


@measure("trace", cost="100 products: about 10 %", source="Hutchinson 1990; Yao et al. 2020, arXiv 1912.07145")
def trace(view: View, seed: int, progress: Progress, *, draws: int = 100, together: int = 4) -> list[Estimate]:
    """E[zᵀHz] = tr H and E‖Hz‖² = ‖H‖_F² for z of ±1. `together`: products that share a first backward pass, each of
    which holds two vectors of P in memory."""
    at_least(2, draws=draws)
    at_least(1, together=together)
    generator = generator_for(view.loss, seed)
    diagonal, squares = [], []
    for first in progress(range(0, draws, together), "trace"):
        z = signs(min(together, draws - first), view.loss, generator)
        product = view.products(z)
        diagonal.append((z * product).sum(1, dtype=torch.float64))
        squares.append(product.double().square().sum(1))
    return [
        Estimate("trace", *mean_and_error(torch.cat(diagonal))),
        Estimate("frobenius_squared", *mean_and_error(torch.cat(squares))),
    ]
