"""The trace with the leading directions summed exactly: better than Hutchinson's where few eigenvalues dominate."""

import torch

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress
from isotrace.transfer.curvature.loss import View, generator_for, signs
from isotrace.transfer.curvature.measure import Estimate, at_least, mean_and_error, measure


@measure("hutchpp", cost="30 products", source="Meyer et al. 2021, arXiv 2010.09649, algorithm 1")
def hutchpp(view: View, seed: int, progress: Progress, *, sketch: int = 10, draws: int = 10) -> list[Estimate]:
    """tr(QᵀHQ) + tr of what is left beside Q, Q an orthonormal basis of H S with S `[P, sketch]` of ±1; the second by
    `draws` random vectors, and the error is that of it. 2 · sketch + draws products; holds 2 · sketch vectors of P.
    Raises InputError for a sketch that spans everything."""
    at_least(1, sketch=sketch)
    at_least(2, draws=draws)
    if sketch >= view.size:
        raise InputError(f"a sketch of {sketch} for {view.size} parameters: give a smaller one.")
    generator = generator_for(view.loss, seed)
    image = torch.cat([view.products(s[None]) for s in progress(signs(sketch, view.loss, generator), "sketch")])
    basis = torch.linalg.qr(image.T)[0]
    inside = sum(float(q @ view.product(q)) for q in progress(basis.T.contiguous(), "trace inside the sketch"))
    beside = []
    for _ in progress(range(draws), "trace beside the sketch"):
        z = signs(1, view.loss, generator)[0]
        z = z - basis @ (basis.T @ z)
        beside.append(float(z @ view.product(z)))
    mean, error = mean_and_error(beside)
    return [Estimate("trace", inside + mean, error)]
