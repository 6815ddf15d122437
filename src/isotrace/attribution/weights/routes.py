"""Routes to what a feature reads: by the same token, through a head, through a skip path, or through several of them.

A route stands back to front, from what reads to what writes: (1.3, 0.2) is through head 2 of layer 0, then through head
3 of layer 1. Every hop is linear once patterns are frozen, so a route's weights are products of those of its segments:

    z_i(k) · A^{1.3}[q, m] A^{0.2}[m, k] · c(q) c(m) c(k) · w_i P W_V^{0.2} W_O^{0.2} P W_V^{1.3} W_O^{1.3} P r_j
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isotrace.attribution.weights.record import Recorded
from isotrace.attribution.weights.segments import Place, Segments


@dataclass(frozen=True)
class Hop:
    """A head of the subject, or the skip path of a layer of the dictionary."""

    kind: Literal["head", "skip"]
    layer: int
    head: int = 0

    @property
    def place(self) -> Place:
        """Where it writes, and where it reads."""
        return Place("heads" if self.kind == "head" else "features", self.layer)


Route = tuple[Hop, ...]
SAME_TOKEN: Route = ()


def written(segments: Segments, route: Route) -> str:
    """`same token`, `head 1.3`, `head 1.3, head 0.2`: the last hop first; layers are the subject's."""
    layers = segments.dictionary.config.layers
    hops = [f"head {h.layer}.{h.head}" if h.kind == "head" else f"skip {layers[h.layer]}" for h in route]
    return ", ".join(hops) or "same token"


def routes(segments: Segments, slot: int) -> list[Route]:
    """Of at most one hop, to features of one layer of the dictionary."""
    subject, config, to = segments.subject, segments.dictionary.config, Place("features", slot)
    heads = [m for m in range(subject.n_layers) if segments.joined(Place("heads", m), to)]
    skips = [s for s in range(config.n_layers) if config.skip and segments.joined(Place("features", s), to)]
    one = [(Hop("head", m, h),) for m in heads for h in range(subject.n_heads(m))]
    return [SAME_TOKEN, *one, *((Hop("skip", s),) for s in skips)]


class Reads:
    """The read vectors of some features of one layer of the dictionary, and where they come from."""

    def __init__(self, segments: Segments, slot: int, features: Tensor) -> None:
        self.segments, self.slot, self.features, self.to = segments, slot, features, Place("features", slot)
        writers = [at for at in segments.widths if segments.joined(at, self.to)]
        self.first = segments.pulled(self.to, segments.reads(slot, features), writers)

    def last(self, route: Route) -> Place:
        """What reads at the far end of a route."""
        return route[-1].place if route else self.to

    def weights(self, route: Route, writer: Place) -> Tensor:
        """r P … P `[n, d]` at a writer that is joined to the far end of the route."""
        vectors, reader = None, self.to
        for hop in route:
            vectors = self._through(hop, self._pulled(vectors, reader, hop.place))
            reader = hop.place
        return self._pulled(vectors, reader, writer)

    def backed(self, recorded: Recorded, values: Tensor, route: Route) -> Tensor:
        """What is asked of every token at the far end, `[b, t, n]`, of `values` asked where the features read: times c
        and A of the segments and hops between."""
        values, reader = _times(values, recorded.read_gain(self.slot)), self.to
        for hop in route:
            values = _times(values, self.segments.gain(hop.place, reader, recorded.sigma))
            if hop.kind == "head":
                values = recorded.patterns[hop.layer][:, hop.head].transpose(1, 2) @ values
            else:
                values = _times(_times(values, recorded.write_gain(hop.layer)), recorded.read_gain(hop.layer))
            reader = hop.place
        return values

    def _pulled(self, vectors: Tensor | None, reader: Place, writer: Place) -> Tensor:
        if vectors is None:
            return self.first[writer]
        if reader.kind == "heads":
            return vectors @ self.segments.values(reader.index, writer)
        return self.segments.pulled(reader, vectors, [writer])[writer]

    def _through(self, hop: Hop, vectors: Tensor) -> Tensor:
        if hop.kind == "head":
            at, kept = self.segments.heads(hop.layer, hop.head), torch.zeros_like(vectors)
            kept[:, at] = vectors[:, at]
            return kept
        dictionary = self.segments.dictionary
        rows = vectors @ dictionary.W_skip[hop.layer].T
        return rows if dictionary.config.token_normalization == "none" else rows - rows.mean(-1, keepdim=True)


@dataclass(frozen=True)
class Group:
    """Layers `targets` that features of layer `source` write to, from which the same norms lie before what reads."""

    source: int
    targets: tuple[int, ...]

    def gain(self, segments: Segments, recorded: Recorded, reader: Place) -> Tensor:
        """c of every token, `[b, t]`."""
        first = self.targets[0]
        return _times(segments.gain(Place("features", first), reader, recorded.sigma), recorded.write_gain(first), 0)


def groups(segments: Segments, reader: Place) -> list[Group]:
    """Of all layers of the dictionary whose features reach `reader`."""
    config, found = segments.dictionary.config, []
    for source in range(config.n_layers):
        alike: dict[object, list[int]] = {}
        for target in config.targets(source):
            at = Place("features", target)
            if segments.joined(at, reader):
                alone = target if config.token_normalization != "none" else None
                alike.setdefault((segments.crossed(at, reader), alone), []).append(target)
        found += [Group(source, tuple(targets)) for targets in alike.values()]
    return found


def virtual_weights(reads: Reads, route: Route, group: Group, sources: Tensor | slice = slice(None)) -> Tensor:
    """V `[sources, n]`, with σ = 1: what a unit of each feature of a layer gives to each of those that read."""
    dictionary, total = reads.segments.dictionary, []
    for target in group.targets:
        pulled = reads.weights(route, Place("features", target))
        total.append(dictionary.decoder(group.source, target)[sources] @ pulled.T)
    return torch.stack(total).sum(0)


def _times(values: Tensor, gain: Tensor | None, trailing: int = 1) -> Tensor:
    return values if gain is None else values * gain.reshape(*gain.shape, *(1,) * trailing)


def reaching(segments: Segments, slots: Iterable[int], slot: int) -> list[int]:
    """Of `slots`, the layers of the dictionary whose features can reach those of layer `slot`, by any route."""
    places = [Place("features", slot), *(route[0].place for route in routes(segments, slot) if route)]
    found = {group.source for place in places for group in groups(segments, place)}
    return [one for one in slots if one in found]
