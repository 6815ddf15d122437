"""Endless streams of shuffled activations, in blocks of bounded size, resumable at every block.

What is said of tokens is true of sequences at pooled hookpoints, where each has one row (`subjects.heads.pooled`).

A block is a shuffle buffer: its tokens come from many sequences in a planned order, are shuffled by its position,
and are handed on at once. Only one block is held at a time.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from isotrace.activations.harvest import Corpus, mask_rate_of, masked_batches, record, width
from isotrace.base.errors import RunError
from isotrace.base.identity import identity
from isotrace.base.settings import child_seed
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Batch, Subject


@dataclass(frozen=True)
class Block:
    """`activations [n_hookpoints, tokens, d]` float32, shuffled over tokens. `position` is where to go on after
    this block: `stream.blocks(start=position)` yields what would have followed."""

    position: int
    activations: Tensor


class ActivationStream(Protocol):
    """What training reads. `d` is the width of every hookpoint."""

    @property
    def hookpoints(self) -> tuple[str, ...]: ...

    @property
    def d(self) -> int: ...

    def blocks(self, start: int = 0) -> Iterator[Block]:
        """Endless. A block is a function of `describe()` and the position it starts at, nothing else."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON object for the record of a training run; two streams are the same if theirs are equal."""
        ...


class SubjectStream:
    """Activations harvested while they are needed. Positions count this rank's batches.

    block_tokens: a block holds at least this many tokens, and less than one batch more.
    batch_tokens: tokens per pass of the subject, see `Plan`.
    mask_rate: share of the tokens masked in every second batch; None: see `mask_rate_of`, and 0 where sequences are
    pooled.
    special_tokens: whether begin, end and their like are kept; mask tokens always are.
    rank, world_size: of `world_size` streams that differ in `rank` alone, each takes its share of the batches.

    Raises RunError where nothing is left to harvest, SubjectError as `width` and
    `mask_rate_of` do.
    """

    def __init__(
        self,
        subject: Subject,
        corpus: Corpus,
        hookpoints: Sequence[str],
        *,
        block_tokens: int,
        batch_tokens: int,
        mask_rate: float | None,
        seed: int,
        special_tokens: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if block_tokens < 1 or not 0 <= rank < world_size:
            raise RunError("a block needs at least one token and a rank lies below world_size: change them.")
        usable = np.ones_like(subject.is_special) if special_tokens else ~subject.is_special.numpy()
        if not usable[corpus.tokens].any():
            raise RunError("the corpus holds no token to harvest from this subject: give other sequences.")
        self.subject, self.corpus, self.hookpoints, self.d = (
            subject,
            corpus,
            tuple(hookpoints),
            width(subject, hookpoints),
        )
        self.block_tokens, self.batch_tokens, self.seed = block_tokens, batch_tokens, seed
        self.pooled = is_pooled(hookpoints)
        self.mask_rate = mask_rate_of(subject, 0.0 if self.pooled and mask_rate is None else mask_rate)
        self.special_tokens, self.rank, self.world_size = special_tokens, rank, world_size

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "subject",
            "subject": identity(self.subject),
            "corpus_sha256": self.corpus.sha256(),
            "hookpoints": list(self.hookpoints),
            "block_tokens": self.block_tokens,
            "batch_tokens": self.batch_tokens,
            "mask_rate": self.mask_rate,
            "seed": self.seed,
            "special_tokens": self.special_tokens,
            "rank": self.rank,
            "world_size": self.world_size,
        }

    def blocks(self, start: int = 0) -> Iterator[Block]:
        for number, gathered, count in self._gathered(start):
            yield Block(number + 1, self._harvest(gathered, count, number))

    def layout(self, start: int = 0) -> Iterator[tuple[int, int]]:
        """(`position`, tokens) of every block from `start` on, without a pass of the subject."""
        return ((number + 1, count) for number, _, count in self._gathered(start))

    def _gathered(self, start: int) -> Iterator[tuple[int, list[tuple[Batch, Tensor]], int]]:
        """The batches of every block, with what is kept of them; number of the last, and tokens."""
        gathered: list[tuple[Batch, Tensor]] = []
        count = 0
        share = {"rank": self.rank, "world_size": self.world_size}
        for number, batch, _ in masked_batches(
            self.subject, self.corpus, self.batch_tokens, self.mask_rate, self.seed, start, **share
        ):
            kept = self._kept(batch)
            gathered.append((batch, kept))
            count += int(kept.sum())
            if count >= self.block_tokens:
                yield number, gathered, count
                gathered, count = [], 0

    def _kept(self, batch: Batch) -> Tensor:
        """`[batch, tokens]` bool, of one token where sequences are pooled."""
        if self.pooled:
            return torch.ones_like(batch.mask[:, :1])
        if self.special_tokens:
            return batch.mask
        return ~self.subject.special(batch.ids) | (batch.ids == self.subject.mask_id)

    def _harvest(self, gathered: list[tuple[Batch, Tensor]], count: int, number: int) -> Tensor:
        """Every token is written once, to its place in the shuffled block."""
        device = self.subject.device
        overall = number * self.world_size + self.rank
        generator = torch.Generator().manual_seed(child_seed(self.seed, overall))
        places = torch.randperm(count, generator=generator).to(device)
        dtype = torch.promote_types(self.subject.model.dtype, torch.float32)
        block = torch.empty(len(self.hookpoints), count, self.d, dtype=dtype, device=device)
        for batch, kept in gathered:
            there, places = places[: int(kept.sum())], places[int(kept.sum()) :]
            rows = None if bool(kept.all()) else kept.flatten().nonzero().squeeze(1).to(device)

            def take(index: int, x: Tensor, there: Tensor = there, rows: Tensor | None = rows) -> None:
                flat = x.flatten(0, 1)
                block[index].index_copy_(0, there, flat if rows is None else flat[rows])

            moved = batch.to(device)
            record(self.subject, moved, self.hookpoints, take)
        return block
