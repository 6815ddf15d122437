"""Rounds in which a share of the sites, drawn at random, is masked at once and filled from one pass.

The loop of published protein steering: ten rounds of a tenth of the sites, T = 1, top-p 0.9. Sites that are filled
together do not see each other, and errors pile up with the rounds, so the designs after the first round are always
given beside those after the last.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch

from isotrace.base.errors import InputError
from isotrace.steering.decoding.decoder import DECODERS, Decoder
from isotrace.steering.decoding.run import Design, Run, Start


@DECODERS.named("mask_predict")
@dataclass(frozen=True, kw_only=True)
class MaskPredict(Decoder):
    """share: of the sites that a round draws anew, at least one site."""

    top_p: float = 0.9
    rounds: int = 10
    share: float = 0.1

    objectives: ClassVar[tuple[str, ...]] = ("masked",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds < 1 or not 0 < self.share <= 1:
            raise InputError(f"{self.rounds} rounds of a share {self.share} change nothing: ≥ 1, above 0 up to 1.")

    def designs(self, run: Run, start: Start) -> Iterator[Design]:
        rows, randoms = [[*start.ids] for _ in range(self.n)], [run.random(start, k) for k in range(self.n)]
        size, mask = max(1, round(self.share * len(start.sites))), run.subject.mask_id
        for number in range(1, self.rounds + 1):
            places = [sorted(random.choice(start.sites, size, replace=False).tolist()) for random in randoms]
            asked = [_with(row, at, [cast(int, mask)] * size) for row, at in zip(rows, places, strict=True)]
            logits = run.read(start, asked, places, number)
            written = run.drawn(
                run.allowed(torch.cat(logits)), [r for r, at in zip(randoms, places, strict=True) for _ in at]
            )
            parts = [written[k * size : (k + 1) * size] for k in range(self.n)]
            rows = [_with(row, at, part) for row, at, part in zip(rows, places, parts, strict=True)]
            if number in (1, self.rounds):
                yield from (replace(run.design(start, row, number), early=number < self.rounds) for row in rows)


def _with(row: Sequence[int], places: Sequence[int], tokens: Sequence[int]) -> list[int]:
    new = dict(zip(places, tokens, strict=True))
    return [new.get(i, token) for i, token in enumerate(row)]
