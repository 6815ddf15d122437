"""The spectral density of the Hessian by stochastic Lanczos quadrature."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from isotrace.base.progress import Progress
from isotrace.transfer.curvature.loss import View, generator_for, normal
from isotrace.transfer.curvature.measure import Estimate, at_least, mean_and_error, measure


@dataclass(frozen=True)
class Density:
    """Of every start the Ritz values `nodes [starts, steps]` and their shares `weights [starts, steps]`, which sum to
    1; NaN and 0 behind a start that ended early."""

    nodes: np.ndarray
    weights: np.ndarray

    def moment(self, power: int) -> np.ndarray:
        """`[starts]`: estimates of tr(H^power)/P, without bias for any power below twice the steps."""
        return np.nansum(self.weights * self.nodes**power, 1)

    def at(self, points: np.ndarray, width: float) -> np.ndarray:
        """`[points]`: the mean over starts of Σ weight · N(point; node, width²)."""
        nodes, weights = self.nodes[np.isfinite(self.nodes)], self.weights[np.isfinite(self.nodes)]
        bells = np.exp(-0.5 * ((points[:, None] - nodes) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        return bells @ weights / len(self.nodes)


@measure(
    "density",
    cost="800 products",
    source="Ubaru, Chen & Saad 2017; Ghorbani et al. 2019, arXiv 1901.10159",
)
def density(view: View, seed: int, progress: Progress, *, starts: int = 10, steps: int = 80) -> list[Estimate]:
    """First two moments of the density, its share below 0, and the extreme Ritz values."""
    found = spectral_density(view, seed, progress, starts=starts, steps=steps)
    below = np.where(found.nodes < 0, found.weights, 0).sum(1)
    return [
        Estimate("density_mean", *mean_and_error(found.moment(1).tolist())),
        Estimate("density_mean_square", *mean_and_error(found.moment(2).tolist())),
        Estimate("share_below_0", *mean_and_error(below.tolist())),
        Estimate("ritz_max", float(np.nanmax(found.nodes))),
        Estimate("ritz_min", float(np.nanmin(found.nodes))),
    ]


def spectral_density(view: View, seed: int, progress: Progress, *, starts: int, steps: int) -> Density:
    """`starts · steps` products; holds `steps` vectors of P."""
    at_least(1, starts=starts, steps=steps)
    generator, nodes, weights = generator_for(view.loss, seed), [], []
    for start in range(starts):
        label = f"spectral density, start {start + 1} of {starts}"
        values, shares = _ritz(view, normal(1, view.loss, generator)[0], min(steps, view.size), progress, label)
        rest = steps - len(values)
        nodes.append(np.concatenate([values, np.full(rest, np.nan)]))
        weights.append(np.concatenate([shares, np.zeros(rest)]))
    return Density(np.stack(nodes), np.stack(weights))


def _ritz(view: View, start: Tensor, steps: int, progress: Progress, label: str) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of the tridiagonal matrix of Lanczos from `start`, and the squared first entries of its vectors."""
    basis = start.new_zeros(steps, len(start))
    vector, diagonal, beside = start / start.norm(), [], []
    for step in progress(range(steps), label):
        basis[step] = vector
        image = view.product(vector)
        diagonal.append(float(vector @ image))
        for _ in range(2):  # against all earlier ones, twice: in float32 once leaves copies of the large eigenvalues
            image = image - basis[: step + 1].T @ (basis[: step + 1] @ image)
        length = float(image.norm())
        if step + 1 == steps or length <= 1e-6 * max(map(abs, (*diagonal, *beside))):
            break  # the rest is an invariant subspace that this start does not reach
        beside.append(length)
        vector = image / length
    tridiagonal = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values, vectors = np.linalg.eigh(tridiagonal)
    return values, vectors[0] ** 2
