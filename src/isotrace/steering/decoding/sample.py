"""Token by token from left to right, drawn: a causal subject goes on behind its start, a decoder writes from what its
encoder reads of it.

Every token is one whole pass over all before it, without a cache, so that an edit acts on the same positions at every
step and what it makes of earlier ones is always in; only what the encoder makes of the start is kept, under one plan.
A round is a token.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from isotrace.base.errors import InputError
from isotrace.steering.decoding.decoder import DECODERS, Decoder
from isotrace.steering.decoding.run import Design, Run, Start


@DECODERS.named("sample")
@dataclass(frozen=True, kw_only=True)
class Sample(Decoder):
    """max_new: tokens to write at most. prefix: what is written first, beyond the start of a causal subject.
    `Design.score`: log p, nats, of the tokens written, T = 1, among those that are allowed."""

    max_new: int = 64
    prefix: str = ""

    objectives: ClassVar[tuple[str, ...]] = ("causal", "denoising", "translating")
    changes_sites: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new < 1:
            raise InputError(f"{self.max_new} new tokens are none: give at least 1.")

    def designs(self, run: Run, start: Start) -> Iterator[Design]:
        begin, end = run.beginning(start, self.prefix), run.end
        rows, scores = [[*begin] for _ in range(self.n)], [0.0] * self.n
        randoms = [run.random(start, k) for k in range(self.n)]
        for token in range(1, self.max_new + 1):
            going = [k for k, row in enumerate(rows) if _goes_on(row, begin, end) and len(row) < run.subject.max_tokens]
            if not going:
                break
            logits = run.allowed(run.read_next(start, [rows[k] for k in going], token, len(begin)), may_end=True)
            drawn = run.drawn(logits, [randoms[k] for k in going])
            said = logits.double().log_softmax(-1)
            for at, (k, written) in enumerate(zip(going, drawn, strict=True)):
                rows[k].append(written)
                scores[k] += float(said[at, written])
        for row, score in zip(rows, scores, strict=True):
            yield run.design(start, row, len(row) - len(begin), score, not _goes_on(row, begin, end))


def _goes_on(row: list[int], begin: list[int], end: int | None) -> bool:
    return len(row) == len(begin) or row[-1] != end
