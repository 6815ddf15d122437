"""What the segments of a subject meet on some sequences: σ of every norm, attention patterns, active features.

All that depends on the input in a connection is here; `segments` has the rest.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from isotrace.attribution.weights.segments import Segments
from isotrace.base.errors import InputError
from isotrace.dictionaries.dictionary import SparseActivations
from isotrace.subjects.dispatch import Site, hookpoints_edited, overlaid, patterns_recorded
from isotrace.subjects.frozen import denominator
from isotrace.subjects.subject import Batch

HELD = 1 << 30
"""Bytes up to which what was recorded is kept; beyond, the subject runs again for every pass over the sequences."""


@dataclass(frozen=True, eq=False)
class Recorded:
    """`b` sequences of `t` tokens, unpadded. `rows`: which sequences. `sigma [norms, b, t]`. Per layer: `patterns [b,
    heads, query, key]`. `active [slots, b, t, k]`, slots being the layers of the dictionary. `counted [b, t]`: the
    tokens whose features are asked about; what they read may come from all. `deviation [slots, b, t]` of what is read,
    where tokens are standardised."""

    rows: np.ndarray
    ids: Tensor
    sigma: Tensor
    patterns: tuple[Tensor, ...]
    active: SparseActivations
    counted: Tensor
    deviation: Tensor | None
    preactivations: list[Tensor] = field(default_factory=list)

    @property
    def n_bytes(self) -> int:
        tensors = (self.sigma, *self.patterns, self.active.values, self.active.indices)
        return sum(t.numel() * t.element_size() for t in tensors)

    def dense(self, segments: Segments, slot: int, features: Tensor) -> Tensor:
        """Activations `[b, t, n]` of the given features of a layer."""
        layer = SparseActivations(self.active.indices[slot], self.active.values[slot])
        return layer.columns(features, segments.dictionary.config.n_features)

    def read_gain(self, slot: int) -> Tensor | None:
        """What the input of a layer is divided by before it is encoded, `[b, t]`."""
        return None if self.deviation is None else 1 / (self.deviation[slot] + 1e-5)

    def write_gain(self, slot: int) -> Tensor | None:
        return None if self.deviation is None else self.deviation[slot]


class Recordings:
    """Of `batches`, (rows, unpadded batch) as `dictionaries.features.batches_of` makes them. Over the tokens counted,
    per layer of the dictionary and feature: `mean` and `deviation` of pre-activations, `density`, `total` activation
    `[n_layers, F]`. `n_tokens` are counted, of `n_sequences`."""

    def __init__(self, segments: Segments, batches: Iterable[tuple[np.ndarray, Batch]], *, held: int = HELD) -> None:
        self.segments, self.batches, self.kept = segments, [*batches], []
        config = segments.dictionary.config
        shape, like = (config.n_layers, config.n_features), {"dtype": torch.float64, "device": segments.device}
        first, second, fires, total = (torch.zeros(shape, **like) for _ in range(4))
        self.n_tokens = self.n_sequences = size = 0
        for rows, batch in self.batches:
            recorded = self.record(rows, batch, preactivations=True)
            self.n_sequences += len(rows)
            self.n_tokens += int(recorded.counted.sum())
            for slot, h in enumerate(recorded.preactivations):
                own = h[recorded.counted].double()
                first[slot] += own.sum(0)
                second[slot] += own.square().sum(0)
                values = recorded.active.values[slot][recorded.counted].flatten().double()
                indices = recorded.active.indices[slot][recorded.counted].flatten().long()
                total[slot].index_add_(0, indices, values)
                fires[slot].index_add_(0, indices, (values > 0).double())
            recorded.preactivations.clear()
            size += recorded.n_bytes
            if size <= held:
                self.kept.append(recorded)
        if self.n_tokens < 2:
            raise InputError("connections need at least two tokens to be weighed on: give more sequences.")
        self.mean, self.density, self.total = first / self.n_tokens, fires / self.n_tokens, total
        self.deviation = (second / self.n_tokens - self.mean.square()).clamp(min=0).sqrt()

    def __iter__(self) -> Iterator[Recorded]:
        yield from self.kept
        for rows, batch in self.batches[len(self.kept) :]:
            yield self.record(rows, batch)

    @torch.no_grad()
    def record(self, rows: np.ndarray, batch: Batch, *, preactivations: bool = False) -> Recorded:
        """One pass of the subject as it is."""
        segments, subject, dictionary = self.segments, self.segments.subject, self.segments.dictionary
        config, sigma, encoded, deviations, kept = dictionary.config, {}, {}, {}, {}

        def measure(norm, args) -> None:
            sigma[norm] = denominator(args[0], norm, subject.family.norm)[..., 0]

        def encode(slot: int, x: Tensor) -> Tensor:
            h = dictionary.preactivations(slot, x)
            encoded[slot] = dictionary.rule.encode(slot, h)
            if config.token_normalization != "none":
                deviations[slot] = x.std(-1)
            if preactivations:
                kept[slot] = h
            return x

        edits = {name: partial(encode, slot) for slot, name in enumerate(config.reads)}
        with (
            patterns_recorded(subject) as patterns,
            overlaid((norm, Site(before=(measure,))) for norm in segments.norms),
            hookpoints_edited(subject, edits),
        ):
            subject.hidden(batch.ids, batch.mask)
        layers = range(config.n_layers)
        counted = batch.mask if config.special_tokens else batch.mask & ~subject.special(batch.ids)
        return Recorded(
            rows,
            batch.ids,
            torch.stack([sigma[norm].expand(batch.ids.shape) for norm in segments.norms]),
            tuple(patterns[module].expand(len(rows), -1, -1, -1) for module in subject.attentions),
            SparseActivations.stack([encoded[slot] for slot in layers]),
            counted,
            torch.stack([deviations[slot] for slot in layers]) if deviations else None,
            [kept[slot] for slot in layers] if preactivations else [],
        )
