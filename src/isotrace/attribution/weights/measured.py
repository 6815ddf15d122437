"""A few edges looked at closely: intervals over sequences, where the tokens stand that they come from, and where a
feature's own writes go.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.attribution.weights.record import Recorded, Recordings
from isotrace.attribution.weights.routes import Group, Reads, Route, groups, routes, virtual_weights
from isotrace.attribution.weights.segments import Place
from isotrace.stats.bootstrap import bootstrap_weights, interval

DRAWS = 500


@dataclass(frozen=True)
class Edge:
    """From feature `(slot, feature)` by a route to the feature at `column` of what reads."""

    source: tuple[int, int]
    route: Route
    column: int


@dataclass(frozen=True)
class Measured:
    """`gives`: G in standard deviations, with `se` and the 95 % interval `ci` over sequences, NaN where what reads
    fires in fewer than two of them. `offset`: where most of it comes from, tokens behind (−) or ahead (+) of what
    reads, and its share of all that comes by size; None for the same token and for several hops."""

    gives: float
    se: float
    ci: tuple[float, float]
    offset: int | None
    offset_share: float | None


@torch.no_grad()
def measured(recordings: Recordings, reads: Reads, edges: Sequence[Edge], *, seed: int = 0) -> list[Measured]:
    """Every edge by itself, in a pass over the sequences; draws are of whole sequences."""
    segments = recordings.segments
    given = np.zeros((len(edges), recordings.n_sequences))
    fired = np.zeros((len(reads.features), recordings.n_sequences))
    offsets: list[dict[int, float]] = [{} for _ in edges]
    parts: list[list[tuple[Group, float]]] = []
    for edge in edges:
        own = [g for g in groups(segments, reads.last(edge.route)) if g.source == edge.source[0]]
        one = torch.tensor([edge.source[1]], device=segments.device)
        parts.append([(g, float(virtual_weights(reads, edge.route, g, one)[0, edge.column])) for g in own])
    for recorded in recordings:
        asked = recorded.dense(segments, reads.slot, reads.features) * recorded.counted[..., None]
        fired[:, recorded.rows] = asked.sum(1).double().T.cpu().numpy()
        backed: dict[Route, Tensor] = {}
        for place, edge in enumerate(edges):
            if edge.route not in backed:
                backed[edge.route] = reads.backed(recorded, asked, edge.route)
            one = torch.tensor([edge.source[1]], device=segments.device)
            sent = recorded.dense(segments, edge.source[0], one)[..., 0]
            gain = sum(v * g.gain(segments, recorded, reads.last(edge.route)) for g, v in parts[place])
            arrives = (sent * gain * backed[edge.route][..., edge.column]).double()
            given[place, recorded.rows] = arrives.sum(1).cpu().numpy()
            if len(edge.route) == 1 and edge.route[0].kind == "head":
                _add_offsets(offsets[place], recorded, reads, edge, sent * gain, asked[..., edge.column])
    weights = np.concatenate(
        [np.ones((1, recordings.n_sequences)), bootstrap_weights(recordings.n_sequences, DRAWS, seed)]
    )
    unit = recordings.deviation[reads.slot, reads.features].cpu().numpy()
    found = []
    for place, edge in enumerate(edges):
        total = weights @ fired[edge.column]
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = np.where(total > 0, weights @ given[place] / total / unit[edge.column], np.nan)
        some = int((fired[edge.column] > 0).sum()) > 1
        ends = interval(draws[1:]) if some else (np.nan, np.nan)
        best = max(offsets[place], key=lambda at: abs(offsets[place][at]), default=None)
        size = sum(map(abs, offsets[place].values()))
        share = None if best is None or not size else abs(offsets[place][best]) / size
        se = float(np.nanstd(draws[1:])) if some else np.nan
        found.append(Measured(float(draws[0]), se, ends, None if share is None else best, share))
    return found


def _add_offsets(
    into: dict[int, float], recorded: Recorded, reads: Reads, edge: Edge, sent: Tensor, asked: Tensor
) -> None:
    """Adds what comes from each offset to it, of an edge through one head."""
    (hop,), segments = edge.route, reads.segments
    gain = segments.gain(hop.place, reads.to, recorded.sigma)
    read = recorded.read_gain(reads.slot)
    asked = asked * gain if read is None else asked * gain * read
    pairs = asked[:, :, None] * recorded.patterns[hop.layer][:, hop.head] * sent[:, None]  # [b, query, key]
    for b, q, k in (pairs != 0).nonzero().tolist():
        into[k - q] = into.get(k - q, 0.0) + float(pairs[b, q, k])


@torch.no_grad()
def sent(recordings: Recordings, slot: int, feature: int) -> dict[tuple[int, Route], Tensor]:
    """G `[F]` from one feature to all of every later layer it reaches, by every route of at most one hop, in standard
    deviations; NaN to a feature that never fires or never varies."""
    segments, config = recordings.segments, recordings.segments.dictionary.config
    every = torch.arange(config.n_features, device=segments.device)
    one = every[feature : feature + 1]
    found: dict[tuple[int, Route], Tensor] = {}
    for to in range(config.n_layers):
        reads, ways = Reads(segments, to, every), {}
        for route in routes(segments, to):
            own = [g for g in groups(segments, reads.last(route)) if g.source == slot]
            if own:
                ways[route] = [(g, virtual_weights(reads, route, g, one)[0]) for g in own]
        met = {(route, g): torch.zeros_like(v) for route, some in ways.items() for g, v in some}
        for recorded in recordings if ways else ():
            values = recorded.dense(segments, slot, one)[..., 0]
            if not bool(values.any()):
                continue
            layer, indices = recorded.active.values[to], recorded.active.indices[to].long()
            for route, group in met:
                arrives = _forward(recorded, reads, route, values * group.gain(segments, recorded, reads.last(route)))
                arrives = (arrives * recorded.counted)[..., None] * layer
                met[route, group].index_add_(0, indices.flatten(), arrives.flatten())
        unit, total = recordings.deviation[to], recordings.total[to]
        scale = torch.where((total > 0) & (unit > 0), 1 / (total * unit), torch.nan)
        for route, some in ways.items():
            found[to, route] = torch.stack([v * met[route, g] for g, v in some]).sum(0) * scale
    return found


def _forward(recorded: Recorded, reads: Reads, route: Route, values: Tensor) -> Tensor:
    """What is written at the far end of a route, `[b, t]`, as it arrives at the tokens that read."""
    segments = reads.segments
    readers: list[Place] = [reads.to, *(hop.place for hop in route)]
    for hop, reader in zip(reversed(route), reversed(readers[:-1]), strict=True):
        if hop.kind == "head":
            values = (recorded.patterns[hop.layer][:, hop.head] @ values[..., None])[..., 0]
        else:
            for gain in (recorded.read_gain(hop.layer), recorded.write_gain(hop.layer)):
                values = values if gain is None else values * gain
        values = values * segments.gain(hop.place, reader, recorded.sigma)
    read = recorded.read_gain(reads.slot)
    return values if read is None else values * read
