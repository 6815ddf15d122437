"""Tokenised sequences in bounded memory, and the order in which they are harvested."""

import hashlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import overload

import numpy as np
import torch

from isotrace.subjects.subject import Batch, Subject

CHUNK = 1_000  # sequences tokenised at a time: the tokeniser's lists are far larger than the ids


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

    def per_epoch(self) -> int:
        """How many batches an epoch has."""
        lengths, counts = np.unique(self.lengths, return_counts=True)
        steps = np.maximum(1, self.tokens // np.maximum(lengths, 1))
        return int((-(-counts // steps)).sum())


class Rows(Sequence[np.ndarray]):
    """Row i is `tokens[offsets[i] : offsets[i + 1]]` as int64."""

    def __init__(self, tokens: np.ndarray, offsets: np.ndarray) -> None:
        self.tokens, self.offsets = tokens, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return self.tokens[self.offsets[i] : self.offsets[i + 1]].astype(np.int64)


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenised sequences, all within the subject's limits, in two to four bytes per token.

    tokens: `[total]` uint16, or int32 for a vocabulary beyond 65,536. offsets: `[sequences + 1]` int64.
    rejects: (index, sequence, reason) of every sequence left out, in the order given.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    rejects: tuple[tuple[int, str, str], ...]

    @classmethod
    def of(cls, subject: Subject, sequences: Iterable[str]) -> "Corpus":
        """Sequences that are empty, too long or hold unknown tokens are left out and listed in `rejects`.

        `sequences` is read once, in small parts: it may be a generator over a file larger than memory.
        """
        flat, offsets, rejects = array("H" if len(subject.tokenizer) <= 2**16 else "i"), array("q", [0]), []
        rest, seen = iter(sequences), 0
        while chunk := list(islice(rest, CHUNK)):
            for index, (ids, _, refusal) in enumerate(subject.tokenized(chunk), start=seen):
                if refusal:
                    rejects.append((index, chunk[index - seen], refusal))
                else:
                    flat.extend(ids)
                    offsets.append(len(flat))
            seen += len(chunk)
        return cls(np.asarray(flat), np.asarray(offsets), tuple(rejects))

    @property
    def ids(self) -> Rows:
        """Token ids of every sequence."""
        return Rows(self.tokens, self.offsets)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def batch(self, rows: np.ndarray) -> Batch:
        """An unpadded batch; all rows must have one length."""
        ids = torch.from_numpy(np.stack([self.ids[r] for r in rows]))
        return Batch(ids, torch.ones_like(ids, dtype=torch.bool), (), ())

    def sha256(self) -> str:
        """Hash of the token ids and where each sequence starts."""
        digest = hashlib.sha256(self.offsets.tobytes())
        digest.update(self.tokens.astype(np.int32).tobytes())
        return digest.hexdigest()
