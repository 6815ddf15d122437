"""Streaming activations out of a subject: unpadded batches of equal length, in a reproducible order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.subjects.subject import Batch, Subject


@dataclass(frozen=True)
class Plan:
    """Which rows of a corpus form batch number i: the same plan for the same corpus, size and seed.

    Batches hold sequences of one length (in tokens), about `tokens` tokens each, in random order; the order
    of every epoch is a function of `seed` and the epoch.
    """

    lengths: np.ndarray
    tokens: int
    seed: int

    def epoch(self, number: int) -> list[np.ndarray]:
        rng = np.random.default_rng((self.seed, number))
        batches = []
        for length in np.unique(self.lengths):
            rows = rng.permutation(np.flatnonzero(self.lengths == length))
            step = max(1, self.tokens // int(length))
            batches += [rows[i : i + step] for i in range(0, len(rows), step)]
        return [batches[i] for i in rng.permutation(len(batches))]


@dataclass(frozen=True)
class Corpus:
    """Tokenised sequences, all within the subject's limits."""

    ids: list[np.ndarray]

    @classmethod
    def of(cls, subject: Subject, sequences: Sequence[str]) -> "Corpus":
        """Sequences that are too long or hold unknown tokens are left out; `len(corpus.ids)` says how many stay."""
        rows = subject.tokenizer(list(sequences), verbose=False)["input_ids"]
        unknown = subject.tokenizer.unk_token_id
        kept = [np.asarray(r, dtype=np.int64) for r in rows if len(r) <= subject.max_tokens and unknown not in r]
        return cls(kept)

    @property
    def lengths(self) -> np.ndarray:
        return np.asarray([len(r) for r in self.ids])

    def batch(self, rows: np.ndarray) -> Batch:
        """An unpadded batch; all rows must have one length."""
        ids = torch.from_numpy(np.stack([self.ids[r] for r in rows]))
        return Batch(ids, torch.ones_like(ids, dtype=torch.bool), (), ())


def mask_some(subject: Subject, batch: Batch, rate: float, generator: torch.Generator) -> tuple[Batch, Tensor]:
    """Replace tokens by the mask token, each with probability `rate`, specials never: (batch, chosen bool)."""
    chosen = torch.rand(batch.ids.shape, generator=generator) < rate
    chosen &= ~subject.is_special[batch.ids]
    return batch.with_ids(batch.ids.masked_fill(chosen, subject.mask_id)), chosen


def mlp_activations(subject: Subject, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(mlp_in, mlp_out, final) with shapes `[n_layers, batch, tokens, d_model]` twice, `[batch, tokens, d_model]`."""
    layers = range(subject.n_layers)
    names_in, names_out = ([f"layers.{i}.mlp_{side}" for i in layers] for side in ("in", "out"))
    output = subject.run(batch, capture=[*names_in, *names_out], logits=False)
    stacked = [torch.stack([output.captured[n] for n in names]) for names in (names_in, names_out)]
    return stacked[0], stacked[1], output.final


def masked_batches(
    subject: Subject, corpus: Corpus, tokens: int, rate: float, seed: int, start: int = 0
) -> Iterator[tuple[int, Batch, Tensor]]:
    """Endless (number, batch, chosen) from batch number `start` on. Every second batch is masked at `rate`,
    the others are whole, since probes read unmasked input."""
    plan, number = Plan(corpus.lengths, tokens, seed), 0
    per_epoch = len(plan.epoch(0))
    epoch, offset = divmod(start, per_epoch)
    while True:
        for index, rows in enumerate(plan.epoch(epoch)):
            if epoch * per_epoch + index < epoch * per_epoch + offset:
                continue
            number = epoch * per_epoch + index
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            batch, chosen = mask_some(subject, corpus.batch(rows), rate if number % 2 == 0 else 0.0, generator)
            yield number, batch, chosen
        epoch, offset = epoch + 1, 0
