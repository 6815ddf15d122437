"""Segments: parts of an input whose order means nothing, such as reactants, fragments and chains."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.subjects.subject import Batch, Subject

Spans = tuple[tuple[int, int], ...]
"""Characters of segments, in order."""
Segmenter = Callable[[str], Spans]


def fragments(text: str) -> Spans:
    """Character spans of the parts between dots, of a reaction those of its reactants (before the first `>`)."""
    spans, start = [], 0
    for part in text.partition(">")[0].split("."):
        spans.append((start, start + len(part)))
        start += len(part) + 1
    return tuple(spans)


@dataclass(frozen=True, eq=False)
class Segments:
    """Of every row of a batch, B rows of T tokens, up to S segments. All that stands between the first and the last
    token of them is their block.

    `group [B, T]` int64: 0 = outside of the block, 1 + s = segment s, 1 + S + j = separator j. `starts`, `lengths`
    `[B, S]`: places, 0 and 0 of a segment that a row lacks. `separators [B, S − 1]`: places, 0 where there is none.
    `ranks [B, S]`: the place of a segment among those of its row when sorted by its tokens, whatever their order in
    the row. `real [B, T]`: no padding.
    """

    group: Tensor
    starts: Tensor
    lengths: Tensor
    separators: Tensor
    ranks: Tensor
    real: Tensor

    @classmethod
    def of(cls, subject: Subject, batch: Batch, spans: Segmenter = fragments) -> "Segments":
        """Raises InputError for a batch without texts, for a span that ends inside a token or holds none, and where
        other things than one and the same token, or nothing, stand between all neighbours."""
        if len(batch.sequences) != len(batch.ids):
            raise InputError("nothing is known of the texts of these tokens: give a batch of Subject.tokenize.")
        given = zip(batch.sequences, batch.offsets, strict=True)
        rows = [tokens_of(text, offsets, spans(text)) for text, offsets in given]
        n = max(map(len, rows))
        group = torch.zeros_like(batch.ids, device="cpu")
        starts, lengths, ranks = torch.zeros(3, len(rows), n, dtype=torch.int64)
        separators = torch.zeros(len(rows), max(0, n - 1), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids = batch.ids[i].tolist()
            for s, (start, stop) in enumerate(row):
                group[i, start:stop], starts[i, s], lengths[i, s] = 1 + s, start, stop - start
            for j, place in enumerate(_between(batch.sequences[i], ids, row)):
                group[i, place], separators[i, j] = 1 + n + j, place
            kinds = sorted({tuple(ids[start:stop]) for start, stop in row})
            ranks[i, : len(row)] = torch.tensor([kinds.index(tuple(ids[start:stop])) for start, stop in row])
        group, starts, lengths, separators, ranks = (
            x.to(batch.ids.device) for x in (group, starts, lengths, separators, ranks)
        )
        return cls(group, starts, lengths, separators, ranks, batch.mask)

    @property
    def counts(self) -> Tensor:
        """`[B]`: segments of each row."""
        return (self.lengths > 0).sum(1)

    @property
    def gap(self) -> Tensor:
        """`[B]`: tokens between two neighbours, 0 or 1."""
        return (self.separators > 0).any(1).long()

    @cached_property
    def first(self) -> Tensor:
        """`[B]`: where the block begins."""
        return self.starts[:, 0]

    @cached_property
    def end(self) -> Tensor:
        """`[B]`: behind the last token of the block."""
        return (self.starts + self.lengths).amax(1)

    @cached_property
    def before(self) -> Tensor:
        """`[B, T]`: tokens in front of the block."""
        return torch.arange(self.group.shape[1], device=self.group.device) < self.first[:, None]

    def visible(self, causal: bool) -> Tensor:
        """bool `[B, T, T]`, query by key: no padding; of a causal subject what stands before, and, of a token inside
        the block, all that belongs to other segments."""
        real = self.real[:, None].expand(-1, self.group.shape[1], -1)
        if not causal:
            return real
        query, key = self.group[:, :, None], self.group[:, None]
        places = torch.arange(self.group.shape[1], device=self.group.device)
        return real & ((places <= places[:, None]) | ((query > 0) & (key > 0) & (query != key)))


def tokens_of(text: str, offsets: Sequence[tuple[int, int]], spans: Spans) -> list[tuple[int, int]]:
    """(first, behind the last) token of every span."""
    found = []
    for start, stop in spans:
        inside = [i for i, (a, b) in enumerate(offsets) if a < b and a < stop and b > start]
        if not inside:
            raise InputError(f"a segment of {text!r} holds no token: leave out empty ones.")
        if offsets[inside[0]][0] < start or offsets[inside[-1]][1] > stop:
            raise InputError(f"segment {text[start:stop]!r} ends inside a token: give spans that tokens respect.")
        if found and inside[0] < found[-1][1]:
            raise InputError(f"the segments of {text!r} overlap or are out of order: give them from left to right.")
        found.append((inside[0], inside[-1] + 1))
    if not found:
        raise InputError(f"{text!r} has no segment: give one at least.")
    return found


def _between(text: str, ids: list[int], row: list[tuple[int, int]]) -> list[int]:
    """Places of the separators."""
    places = [[*range(stop, start)] for (_, stop), (start, _) in pairwise(row)]
    if {len(one) for one in places} - {0} == set():
        return []
    if {len(one) for one in places} != {1} or len({ids[one[0]] for one in places}) > 1:
        raise InputError(f"between the segments of {text!r} stands more than one and the same token: give other spans.")
    return [one[0] for one in places]
