"""The likeliest continuations that a search of fixed width finds, token by token; see `sample` for what is read.

Hypotheses are ranked by log p / tokens^`length_penalty`, of the tokens written, that which ends them included; 0 ranks
by log p alone. The search ends when no open hypothesis can overtake the worst of those kept, or at `max_new`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from isotrace.base.errors import InputError
from isotrace.steering.decoding.decoder import DECODERS, Decoder
from isotrace.steering.decoding.run import Design, Run, Start

Hypothesis = tuple[float, list[int]]
"""log p of what is written, all tokens."""


@DECODERS.named("beam")
@dataclass(frozen=True, kw_only=True)
class Beam(Decoder):
    """n: hypotheses returned, the best. width: kept at every token, at least n. prefix, max_new: as in `sample`."""

    width: int = 5
    length_penalty: float = 1.0
    max_new: int = 64
    prefix: str = ""

    objectives: ClassVar[tuple[str, ...]] = ("causal", "denoising", "translating")
    draws: ClassVar[bool] = False
    changes_sites: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < self.n or self.max_new < 1 or not self.length_penalty >= 0:
            raise InputError(
                f"a beam of width {self.width} gives no {self.n} of {self.max_new} tokens, penalty "
                f"{self.length_penalty}: width ≥ n, max_new ≥ 1, length_penalty ≥ 0."
            )

    def designs(self, run: Run, start: Start) -> Iterator[Design]:
        begin, end = run.beginning(start, self.prefix), run.end
        longest = min(self.max_new, run.subject.max_tokens - len(begin))
        going: list[Hypothesis] = [(0.0, begin)]
        done: list[Hypothesis] = []
        for token in range(1, longest + 1):
            logits = run.allowed(run.read_next(start, [row for _, row in going], token, len(begin)), may_end=True)
            said = logits.double().log_softmax(-1).cpu()
            best, index = said.topk(min(2 * self.width, said.shape[1]))
            found = [
                (score + value, [*row, written])
                for (score, row), values, tokens in zip(going, best.tolist(), index.tolist(), strict=True)
                for value, written in zip(values, tokens, strict=True)
                if value > -float("inf")
            ]
            found = sorted(found, key=lambda one: -one[0])[: 2 * self.width]
            done += [one for one in found if one[1][-1] == end]
            done = sorted(done, key=lambda one: -self._rank(one, begin))[: self.width]
            going = [one for one in found if one[1][-1] != end][: self.width]
            if not going or (len(done) == self.width and self._bound(going[0], longest) <= self._rank(done[-1], begin)):
                going = []
                break
        ranked = [(self._rank(one, begin), one[1], True) for one in done]
        ranked += [(self._rank(one, begin), one[1], False) for one in going]
        for score, row, ended in sorted(ranked, key=lambda one: (not one[2], -one[0]))[: self.n]:
            yield run.design(start, row, len(row) - len(begin), score, ended)

    def _rank(self, one: Hypothesis, begin: list[int]) -> float:
        return one[0] / max(1, len(one[1]) - len(begin)) ** self.length_penalty

    def _bound(self, one: Hypothesis, longest: int) -> float:
        """What an open one can reach at best: no token loses anything any more."""
        return one[0] / longest**self.length_penalty
