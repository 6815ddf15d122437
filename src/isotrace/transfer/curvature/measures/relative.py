"""Curvature in parameters measured in units of their own size: S H S, S = diag|θ|.

Rescaling W₁ → a W₁, W₂ → W₂/a of a ReLU network leaves its function and changes H, but not S H S.
"""

from isotrace.base.progress import Progress
from isotrace.transfer.curvature.loss import View
from isotrace.transfer.curvature.measure import Estimate, measure
from isotrace.transfer.curvature.measures.eigenvalues import eigenvalues
from isotrace.transfer.curvature.measures.trace import trace


@measure(
    "relative",
    cost="20–60 products for each end, and 100",
    source="Dinh et al. 2017, arXiv 1703.04933, on why; Petzka et al. 2021, arXiv 2001.00939",
)
def relative(
    view: View, seed: int, progress: Progress, *, draws: int = 100, together: int = 4, **settings: int | float
) -> list[Estimate]:
    """Eigenvalues, trace and squared Frobenius norm of S H S, by those measures. `settings`: see `eigenvalues`."""
    scaled = view.scaled(view.loss.at.abs())
    found = eigenvalues(scaled, seed, progress, **settings)  # pyright: ignore[reportArgumentType]
    found += trace(scaled, seed, progress, draws=draws, together=together)
    view.counted(scaled)
    return [Estimate(f"relative_{e.quantity}", e.value, e.error, e.reason) for e in found]
