"""Connections between features over many inputs: the weights, times how often both are active.

    G_ij = E[z_i V_ij c z_j] / E[z_j]    what i gives to the pre-activation of j, on average, when j fires

Weights alone are full of interference: two features that never meet have one too. E weighs every token by z_j, so that
a dense i counts where j fires and not elsewhere; through a head, A[q, k] weighs the tokens k that j's token q attends
to. G is in units of the standard deviation of j's pre-activation, as encoders differ in norm.

The null is the same with the decoder rows of a layer permuted among features about as dense: what a feature gives must
lie above the share LEVEL of what other features would give in its place, in each of the permutations.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from torch import Tensor

from isotrace.attribution.weights.record import Recorded, Recordings
from isotrace.attribution.weights.routes import Group, Reads, Route, groups, routes, virtual_weights, written
from isotrace.attribution.weights.segments import Segments
from isotrace.base.errors import InputError

PERMUTATIONS, LEVEL = 10, 0.99
BIN = 10
"""Features that a bin of density holds at least; there are at most ten bins, deciles."""


KEPT = 200
"""Edges into one feature that are kept."""
EDGES = {"layer": pl.Int64, "feature": pl.Int64, "from_layer": pl.Int64, "from_feature": pl.Int64, "route": pl.String,
         "gives": pl.Float64, "threshold": pl.Float64}  # fmt: skip
PIECE = 1 << 20
"""Numbers that are made at a time of what all features of some tokens give."""


@dataclass(frozen=True, eq=False)
class Block:
    """G `[F, n]` of all features of layer `source` by one route to `features [n]` of layer `slot`; `threshold [n]` of
    the null, NaN where no feature of that layer is active together with them; `together [F, n]`: which are. `weights`,
    `active`: V and what it is weighed by, `[F, n]` for every group of layers written to. `bins`: features about as
    dense."""

    source: int
    slot: int
    route: Route
    features: Tensor
    value: Tensor
    threshold: Tensor
    together: Tensor
    weights: list[Tensor]
    active: list[Tensor]
    bins: list[np.ndarray]

    @property
    def kept(self) -> Tensor:
        """`[F, n]`: above the null."""
        return self.value.abs() > self.threshold

    def chance(self, i: int, k: int) -> float:
        """Of the features about as dense as `i`, itself among them, the share whose decoder rows would give as much to
        feature `k` in its place: a threshold counts how much both are active, this does not."""
        own = torch.from_numpy(next(some for some in self.bins if i in some)).to(self.value.device)
        parts = [w[own, k] * a[i, k] for w, a in zip(self.weights, self.active, strict=True)]
        would = torch.stack(parts).sum(0).abs()
        return float((would >= self.value[i, k].abs() * (1 - 1e-6)).double().mean())

    @property
    def share_kept(self) -> float:
        """Of the pairs that are active together; NaN where there is none."""
        n = int(self.together.sum())
        return int((self.kept & self.together).sum()) / n if n else float("nan")


@torch.no_grad()
def blocks(
    recordings: Recordings, slot: int, features: Tensor, ways: list[Route] | None = None, *,
    permutations: int = PERMUTATIONS, seed: int = 0,
) -> Iterator[Block]:  # fmt: skip
    """One for every route to `features [n]` of a layer of the dictionary (all of at most one hop, or `ways`) and every
    layer that writes to its far end. `n` bounds the memory: layers · heads · F · n numbers are held at a time."""
    segments = recordings.segments
    reads = Reads(segments, slot, features)
    ways = routes(segments, slot) if ways is None else ways
    found = co_activity(recordings, reads, ways)
    total, unit = recordings.total[slot, features], recordings.deviation[slot, features]
    scale = torch.where((total > 0) & (unit > 0), 1 / (total * unit), torch.nan).to(segments.subject._weight.dtype)
    by_layer: dict[tuple[Route, int], list[Group]] = {}
    for route, group in found:
        by_layer.setdefault((route, group.source), []).append(group)
    for (route, source), some in by_layer.items():
        active = [found[route, group] * scale for group in some]
        weights = [virtual_weights(reads, route, group) for group in some]
        together = torch.stack([a != 0 for a in active]).any(0)
        value = sum((w * a for w, a in zip(weights, active, strict=True)), torch.zeros_like(active[0]))
        orders = permuted(recordings.density[source], permutations, (seed, source))
        threshold = null_threshold(weights, active, together, orders)
        bins = bins_of(recordings.density[source])
        yield Block(source, slot, route, features, value, threshold, together, weights, active, bins)


def co_activity(recordings: Recordings, reads: Reads, ways: list[Route]) -> dict[tuple[Route, Group], Tensor]:
    """Σ z_i(k) c A … z_j(q) over all tokens, `[F, n]`, per route and group of layers at its far end."""
    segments, config = recordings.segments, recordings.segments.dictionary.config
    ends = {route: groups(segments, reads.last(route)) for route in ways}
    like = {"device": segments.device, "dtype": segments.subject._weight.dtype}
    shape = config.n_features, len(reads.features)
    found = {(route, group): torch.zeros(shape, **like) for route in ways for group in ends[route]}
    for recorded in recordings:
        asked = recorded.dense(segments, reads.slot, reads.features) * recorded.counted[..., None]
        if not bool(asked.any()):
            continue
        for route in ways:
            if not ends[route]:
                continue
            backed = reads.backed(recorded, asked, route).flatten(0, 1)
            for group in ends[route]:
                gain = group.gain(segments, recorded, reads.last(route))
                _add(found[route, group], recorded, group.source, gain, backed)
    return found


def _add(into: Tensor, recorded: Recorded, slot: int, gain: Tensor, backed: Tensor) -> None:
    """Adds activations times `gain [b, t]` times `backed [tokens, n]` to the rows of their features, `into [F, n]`."""
    values = (recorded.active.values[slot] * gain[..., None]).flatten(0, 1)
    indices = recorded.active.indices[slot].flatten(0, 1).long()
    step = max(1, PIECE // (values.shape[1] * backed.shape[1]))
    for v, i, y in zip(values.split(step), indices.split(step), backed.split(step), strict=True):
        into.index_add_(0, i.flatten(), (v[..., None] * y[:, None]).flatten(0, 1))


def bins_of(density: Tensor) -> list[np.ndarray]:
    """The features of a layer that are ever active, in deciles of density; fewer of them where BIN features are not in
    each."""
    density_of = density.cpu().numpy()
    alive = np.flatnonzero(density_of > 0)
    alive = alive[np.argsort(density_of[alive], kind="stable")]
    return np.array_split(alive, max(1, min(10, len(alive) // BIN)))


def permuted(density: Tensor, n: int, seed: tuple[int, ...]) -> list[Tensor]:
    """`n` orders of the features of a layer: those that are ever active change places with others about as dense."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        order = np.arange(len(density))
        for some in bins_of(density):
            order[some] = rng.permutation(some)
        found.append(torch.from_numpy(order).to(density.device))
    return found


def null_threshold(weights: list[Tensor], active: list[Tensor], together: Tensor, orders: list[Tensor]) -> Tensor:
    """`[n]`: the largest over `orders` of the value that at most 1 − LEVEL of the pairs active together lie above,
    where decoder rows stand in that order. Raises InputError without an order."""
    if not orders:
        raise InputError("edges are judged against permuted decoders: ask for at least one permutation.")
    count = together.sum(0)
    place = ((1 - LEVEL) * count + 1e-9).floor().long()
    highest = torch.full(count.shape, torch.nan, device=together.device)
    for order in orders:
        value = sum((w[order] * a for w, a in zip(weights, active, strict=True)), torch.zeros_like(active[0])).abs()
        value = torch.where(together, value, -1.0)
        top = value.topk(min(len(value), int(place.max()) + 1), dim=0).values
        highest = torch.fmax(highest, top.gather(0, place[None])[0])
    return torch.where(count > 0, highest, torch.nan)


def all_blocks(
    recordings: Recordings, *, through_heads: bool = False, at_a_time: int = 256, **given: int
) -> Iterator[Block]:
    """Of every feature of the dictionary that is ever active, so many of a layer at a time."""
    segments: Segments = recordings.segments
    for slot in range(segments.dictionary.config.n_layers):
        alive = (recordings.density[slot] > 0).nonzero()[:, 0]
        ways = [route for route in routes(segments, slot) if through_heads or not route or route[0].kind == "skip"]
        for features in alive.split(at_a_time):
            yield from blocks(recordings, slot, features, ways, **given)


def edge_table(recordings: Recordings, *, through_heads: bool = False, keep: int = KEPT, **given: int) -> pl.DataFrame:
    """The `keep` largest edges above their null into every feature, one row each: `layer`, `feature` (that reads),
    `from_layer`, `from_feature`, `route`, `gives` (standard deviations), `threshold`; layers are the subject's."""
    segments, parts = recordings.segments, [pl.DataFrame(schema=EDGES)]
    layers = segments.dictionary.config.layers
    for block in all_blocks(recordings, through_heads=through_heads, **given):
        size = torch.where(block.kept, block.value.abs(), 0.0)
        best = size.topk(min(keep, len(size)), dim=0).indices
        column = torch.arange(best.shape[1], device=best.device).expand_as(best)
        on = size[best, column] > 0
        rows, columns = best[on], column[on]
        values = block.value[rows, columns], block.threshold[columns]
        read, sent = block.features[columns], rows
        found = {"feature": read, "from_feature": sent, "gives": values[0].double(), "threshold": values[1].double()}
        about = {"layer": layers[block.slot], "from_layer": layers[block.source]}
        frame = pl.DataFrame({name: column.cpu().numpy() for name, column in found.items()})
        frame = frame.with_columns(**{name: pl.lit(layer, dtype=pl.Int64) for name, layer in about.items()})
        parts.append(frame.with_columns(route=pl.lit(written(segments, block.route))).select(*EDGES))
    every = pl.concat(parts).sort(pl.col("gives").abs(), descending=True, maintain_order=True)
    return (
        every.group_by("layer", "feature", maintain_order=True).head(keep).sort("layer", "feature", maintain_order=True)
    )
