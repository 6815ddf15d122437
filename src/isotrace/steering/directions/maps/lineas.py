"""LinEAS: sparse maps at several sites, fitted together so that distributions of activations meet (Rodriguez et al.
2025, end-to-end activation steering).

A map is T(z) = ω ⊙ z + b. What is made small is, over sites and coordinates, the squared 1-D Wasserstein distance
between pooled source activations, all earlier maps being on, and pooled target activations of the untouched subject;
a penalty γ on ω − 1 and b, by proximal steps, leaves most coordinates alone.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, silent
from isotrace.datasets.tasks import batches
from isotrace.steering import AffineEdit
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.directions.maps.linear_transport import at_quantiles
from isotrace.steering.states import BATCH_TOKENS, How, pooled, pooled_by, token_weights

Maps = dict[int, tuple[Tensor, Tensor]]
"""Site → (ω − 1, b), `[d]` each."""
Forward = Callable[[np.ndarray, Mapping[int, tuple[Tensor, Tensor]]], dict[int, Tensor]]
"""(source rows, maps) → pooled activations behind the map of each site, `[rows, d]`, differentiable in the maps."""


@dataclass(frozen=True)
class Training:
    """`batch`: source and target rows per step. `group`: also the penalty on whole sites. `refit`: a second fit,
    unpenalised, of the coordinates that the first left in."""

    gamma: float = 0.01
    steps: int = 1_000
    rate: float = 0.1
    batch: int = 512
    group: bool = True
    refit: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.gamma < 0 or self.rate <= 0 or self.steps < 1 or self.batch < 2:
            raise InputError("LinEAS needs gamma ≥ 0, rate > 0, steps ≥ 1 and batch ≥ 2: correct the settings.")


@direction(
    "lineas", labels="two sets", gradients="yes", cost="2N F + steps · batch · 3 F", tuned="γ, sites",
    source="Rodriguez et al. 2025 (LinEAS)",
)  # fmt: skip
def lineas(
    fitting: Fitting, gamma: float = 0.01, steps: int = 1_000, rate: float = 0.1, batch: int = 512, group: bool = True,
    refit: bool = True, seed: int = 0, how: How | None = None,
) -> list[AffineEdit]:  # fmt: skip
    """Sparse maps of all sites together, from unpaired sets

    Settings as in `Training`. Small batches leave every coordinate in, so that all sequences take part in a step where
    there are no more than `batch`. Told: `bias`, by how much at most the penalty had moved an ω or b (in units of the
    site's root mean square) from where the second fit puts it, and `support`, how many coordinates are not left alone.
    Raises InputError for confounds that are held by weights."""
    contrast, subject, components = fitting.contrast, fitting.subject, fitting.components
    contrast.need_sides("LinEAS")
    how = how or fitting.usual
    source = [contrast.examples[i] for i in contrast.negative]
    others = [contrast.examples[i] for i in contrast.positive]
    target = pooled(subject, others, components, fitting.layers, how)
    training = Training(gamma, steps, rate, batch, group, refit, seed)

    def forward(rows: np.ndarray, maps: Mapping[int, tuple[Tensor, Tensor]]) -> dict[int, Tensor]:
        chosen = sorted((source[i] for i in rows), key=lambda e: len(e.ids))
        found: dict[int, list[Tensor]] = {layer: [] for layer in maps}
        for _, part in batches(chosen, BATCH_TOKENS, subject):
            weights, seen = token_weights(subject, part, how), dict[int, Tensor]()
            edited = (part.mask & ~subject.special(part.ids))[..., None]

            def mapped(layer: int, values: Tensor, seen=seen, edited=edited) -> Tensor:
                scale, shift = (fitting.shaped(layer, x).to(values) for x in maps[layer])
                seen[layer] = torch.where(edited[..., None], values + scale * values + shift, values)
                return seen[layer]

            with components.edited(subject, mapped, fitting.layers):
                subject.hidden(part.ids, part.mask)
            for layer, x in seen.items():
                found[layer].append(pooled_by(x.flatten(-2), weights))
        return {layer: torch.cat(parts) for layer, parts in found.items()}

    # with one site nothing precedes the map, and a map of single coordinates goes through a mean over tokens
    if len(fitting.layers) == 1:
        layer = fitting.layers[0]
        plain = pooled(subject, source, components, fitting.layers, how)[layer]

        def forward(rows: np.ndarray, maps: Mapping[int, tuple[Tensor, Tensor]]) -> dict[int, Tensor]:
            x, (scale, shift) = plain[rows], maps[layer]
            return {layer: x + scale * x + shift}

    maps, fitting.told["bias"] = fit_maps(forward, len(source), target, training, fitting.progress)
    fitting.told["support"] = sum(int(((scale != 0) | (shift != 0)).sum()) for scale, shift in maps.values())
    return [
        AffineEdit(
            components=components, layer=layer, scale=fitting.shaped(layer, 1 + maps[layer][0]),
            shift=fitting.shaped(layer, maps[layer][1]),
        )
        for layer in fitting.layers
    ]  # fmt: skip


def fit_maps(
    forward: Forward, n_source: int, target: Mapping[int, Tensor], training: Training, progress: Progress = silent
) -> tuple[Maps, float]:
    """Maps of the sites of `target` (site → pooled target activations `[m, d]`), float64, and the bias of the penalty,
    the largest difference of an ω or b before and after the second fit, NaN without one. Activations are measured in
    the root mean square of their site over the source, so that one rate and γ suit all sites; b in the bias too."""
    none = {site: (torch.zeros_like(x[0]), torch.zeros_like(x[0])) for site, x in target.items()}
    with torch.no_grad():
        own = forward(np.arange(n_source), none)
    unit = {site: x.square().mean().sqrt().clamp(min=1e-12) for site, x in own.items()}
    steep = {site: (x / unit[site]).square().mean(0).clamp(min=1) for site, x in own.items()}
    given = forward, n_source, target, unit, steep, training
    settled = _descended(*given, training.gamma, none, None, progress)
    bias = 0.0 if not training.gamma else float("nan")
    if training.refit and training.gamma:
        support = {site: ((scale != 0) | (shift != 0)).double() for site, (scale, shift) in settled.items()}
        penalised, settled = settled, _descended(*given, 0.0, settled, support, progress)
        pairs = [(a, b) for site in settled for a, b in zip(settled[site], penalised[site], strict=True)]
        bias = max(float((a - b).abs().max()) for a, b in pairs)
    return {site: (scale, shift * unit[site]) for site, (scale, shift) in settled.items()}, bias


def wasserstein(source: Tensor, target: Tensor) -> Tensor:
    """Σ over coordinates of the mean squared difference of sorted values, of `[n, d]` and `[m, d]`: differentiable in
    `source`; the target is read at as many quantiles."""
    return _distance(source, at_quantiles(target.sort(0).values, len(source)))


def _distance(source: Tensor, ranked: Tensor) -> Tensor:
    return (source.sort(0).values - ranked).square().mean(0).sum()


def shrunk(x: Tensor, step: Tensor, group: bool) -> Tensor:
    """The proximal step of ‖x‖₁, by coordinate, and then of √d ‖x‖₂ where `group`, by the mean step."""
    x = x.sign() * (x.abs() - step).clamp(min=0)
    norm = float(x.norm())
    return x * max(0.0, 1 - float(step.mean()) * len(x) ** 0.5 / norm) if group and norm else x


def _descended(
    forward: Forward, n_source: int, target: Mapping[int, Tensor], unit: Mapping[int, Tensor],
    steep: Mapping[int, Tensor], training: Training, gamma: float, start: Maps,
    support: Mapping[int, Tensor] | None, progress: Progress,
) -> Maps:  # fmt: skip
    """Maps with b in units of `unit`. `steep`: by how much shorter the steps of ω are, by coordinate. `support`: 1 for
    the coordinates that may move. A step after which the cost is more than it was at first is taken back, and later
    ones are half as long: sites that amplify each other need it."""
    rng, maps = np.random.default_rng((training.seed, 5)), start
    n = min(training.batch, n_source)
    whole = max(n_source, *(len(x) for x in target.values())) <= training.batch
    scaled = {site: y / unit[site] for site, y in target.items()}
    ranked = {site: at_quantiles(y.sort(0).values, n) for site, y in scaled.items()}
    before, slow, first = maps, 1.0, np.inf
    for step in progress(range(training.steps), "fitting maps"):
        given = {site: tuple(x.clone().requires_grad_(True) for x in pair) for site, pair in maps.items()}
        rows = np.arange(n_source) if whole else rng.choice(n_source, n, replace=False)
        if not whole:
            drawn = {site: rng.choice(len(y), min(training.batch, len(y)), replace=False) for site, y in scaled.items()}
            ranked = {site: at_quantiles(y[drawn[site]].sort(0).values, n) for site, y in scaled.items()}
        with torch.enable_grad():
            found = forward(rows, {site: (scale, shift * unit[site]) for site, (scale, shift) in given.items()})
            cost = torch.stack([_distance(x / unit[site], ranked[site]) for site, x in found.items()]).sum()
        now = float(cost.detach())
        if now > 1.2 * first:
            maps, slow = before, slow / 2
            continue
        before, first = maps, now + 1e-12 if step == 0 else first
        flat = [x for pair in given.values() for x in pair]
        slopes = iter(torch.autograd.grad(cost, flat))
        rate = training.rate * slow * 0.5 * (1 + float(np.cos(np.pi * step / training.steps)))
        maps = {}
        for site, pair in given.items():
            rates = rate / steep[site], torch.full_like(steep[site], rate)
            moved = [x.detach() - step * next(slopes) for x, step in zip(pair, rates, strict=True)]
            if support:
                moved = [x * support[site] for x in moved]
            else:
                moved = [shrunk(x, gamma * r, training.group) for x, r in zip(moved, rates, strict=True)]
            maps[site] = moved[0], moved[1]
    return maps
