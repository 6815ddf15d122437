"""Linear activation transport: a map of each coordinate that carries the sources to the targets (Lin-AcT, Rodriguez et
al. 2025)."""

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.interventions.plan import Plan
from isotrace.steering import AffineEdit
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.states import How, pooled


@direction(
    "linear_transport", labels="two sets", cost="2N F, and N F for every layer behind the first", tuned="layers",
    source="Rodriguez et al. 2025 (Lin-AcT)",
)  # fmt: skip
def linear_transport(
    fitting: Fitting, how: How | None = None, support: str | tuple[float, float] | None = None
) -> list[AffineEdit]:  # fmt: skip
    """Every coordinate's sorted values on the negative side to those on the positive, layer after layer

    The second layer is fitted on what the map of the first makes of the negative side, and so on. `support`: two
    quantiles of the (mapped) negative side, `"0,1"` for its smallest and largest value; a coordinate is moved only
    between them, since beyond them the map was fitted to nothing. They are those of pooled states, and single tokens
    spread more widely than means do. Raises InputError for confounds that are held by weights and for a support that is
    none."""
    contrast, subject, components = fitting.contrast, fitting.subject, fitting.components
    contrast.need_sides("linear transport")
    how, ends = how or fitting.usual, None if support is None else quantiles(support)
    source = [contrast.examples[i] for i in contrast.negative]
    target = pooled(subject, [contrast.examples[i] for i in contrast.positive], components, fitting.layers, how)
    edits: list[AffineEdit] = []
    for layer in fitting.progress(fitting.layers, "transporting"):
        plan = Plan.of(*(edit.plan(1.0) for edit in edits))
        here = pooled(subject, source, components, (layer,), how, plan=plan)[layer]
        scale, shift = transport(here, target[layer])
        low, high = (None, None) if ends is None else here.quantile(here.new_tensor(ends), 0)
        scale, shift = (fitting.shaped(layer, x) for x in (scale, shift))
        low, high = (x if x is None else fitting.shaped(layer, x) for x in (low, high))
        edits.append(AffineEdit(components=components, layer=layer, scale=scale, shift=shift, low=low, high=high))
    return edits


def quantiles(support: str | tuple[float, float]) -> tuple[float, float]:
    """From two numbers, or their text `"0.05,0.95"`. Raises InputError for what are no two quantiles in order."""
    try:
        low, high = map(float, support.split(",") if isinstance(support, str) else support)
    except (TypeError, ValueError):
        low, high = 1.0, 0.0
    if not 0 <= low < high <= 1:
        raise InputError(f"support={support!r} is no range of quantiles: give two from 0 to 1, as 0,1 or 0.05,0.95.")
    return low, high


def transport(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(ω, b) `[d]`: least squares from the sorted values of each coordinate of `source [n, d]` to those of `target
    [m, d]`. Of unequal numbers both are read at as many quantiles as the smaller has. A coordinate that is constant in
    the source keeps ω = 1."""
    x, y = levelled(source, target)
    spread = x - x.mean(0)
    power = spread.square().sum(0)
    known = power > 1e-12 * x.square().sum(0).clamp(min=1e-30)
    scale = torch.where(known, (spread * (y - y.mean(0))).sum(0) / power.where(known, 1.0), 1.0)
    return scale, y.mean(0) - scale * x.mean(0)


def levelled(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both sorted by coordinate, `[min(n, m), d]`, the longer read at the quantiles of the shorter."""
    n, (a, b) = min(len(a), len(b)), (x.sort(0).values for x in (a, b))
    return at_quantiles(a, n), at_quantiles(b, n)


def at_quantiles(ranked: Tensor, n: int) -> Tensor:
    """`ranked [m, d]` at n quantiles (i + ½)/n, linear between ranks."""
    if len(ranked) == n:
        return ranked
    places = ((torch.arange(n, dtype=ranked.dtype) + 0.5) / n * len(ranked) - 0.5).clamp(0, len(ranked) - 1)
    low = places.floor().long().clamp(max=len(ranked) - 1)
    high = (low + 1).clamp(max=len(ranked) - 1)
    return ranked[low].lerp(ranked[high], (places - low)[:, None])
