"""Mutations ranked by how much likelier a masked subject finds them than what stands there.

`masked`    log p(m | all but the site) − log p(w | all but the site), one pass a site (masked marginal)
`wild_type` the same from one pass of the start as it is (wild-type marginal)
`pseudo`    pseudo-log-likelihood of the mutant less that of the start, one pass for each token of each mutant; of the
            `pool` best by the masked marginal

All three of Meier et al. 2021 (NeurIPS 34); the first is the target `mutation:` of one site. The best single mutants
come first, then the changes are combined greedily, best first, at sites not yet taken, as long as each adds: the score
of several is the sum of theirs, not a joint likelihood. What the parser does not take is passed over. Under an edit the
same scores are those of the steered subject: the cheapest steered generator there is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.steering.decoding.decoder import DECODERS, Decoder
from isotrace.steering.decoding.run import Design, Run, Start

Score = Literal["masked", "wild_type", "pseudo"]
Change = tuple[float, int, int]
"""Score in nats, position, token."""


@DECODERS.named("likelihood_ranked")
@dataclass(frozen=True, kw_only=True)
class LikelihoodRanked(Decoder):
    """n: single mutants of each start, the best; combine: changes of the largest design beside them. `Design.score`:
    log-odds in nats."""

    n: int = 10
    score: Score = "masked"
    combine: int = 1
    pool: int = 100

    objectives: ClassVar[tuple[str, ...]] = ("masked",)
    draws: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.score not in get_args(Score):
            raise InputError(f"there is no score {self.score!r}: give one of {', '.join(get_args(Score))}.")
        if self.combine < 1 or self.pool < 1:
            raise InputError(f"{self.combine} changes from a pool of {self.pool} are none: give at least 1.")

    def designs(self, run: Run, start: Start) -> Iterator[Design]:
        singles: list[tuple[Change, Design]] = []
        for change in self.ranked(run, start):
            design = run.design(start, _changed(start.ids, [change]), 1, change[0])
            if design.valid:
                singles.append((change, design))
            if len(singles) == self.n:
                break
        yield from (design for _, design in singles)
        yield from self._combined(run, start, [change for change, _ in singles])

    def ranked(self, run: Run, start: Start) -> list[Change]:
        """Every change of one token, the best first."""
        own = torch.tensor([start.ids[site] for site in start.sites])[:, None]
        if self.score == "wild_type":
            (logits,) = run.read(start, [start.ids], [start.sites], 1)
        else:
            logits = run.read_masked(start, start.ids, start.sites)
        logits = logits.double().cpu()
        odds = run.allowed(logits - logits.gather(1, own)).scatter(1, own, -torch.inf)
        ranked = _best(odds, start.sites)
        if self.score != "pseudo":
            return ranked
        pool = ranked[: self.pool]
        before = self._pseudo(run, start, start.ids)
        again = [(self._pseudo(run, start, _changed(start.ids, [c])) - before, *c[1:]) for c in pool]
        return sorted(again, key=lambda change: -change[0])

    def _pseudo(self, run: Run, start: Start, ids: Sequence[int]) -> float:
        places = (~run.subject.special(torch.tensor(ids))).nonzero()[:, 0].tolist()
        own = torch.tensor([ids[place] for place in places])[:, None]
        return float(run.read_masked(start, ids, places).double().cpu().log_softmax(-1).gather(1, own).sum())

    def _combined(self, run: Run, start: Start, ranked: Sequence[Change]) -> Iterator[Design]:
        taken: list[Change] = []
        for change in ranked:
            if len(taken) == self.combine or change[0] <= 0:
                break
            if change[1] in {site for _, site, _ in taken}:
                continue
            design = run.design(
                start, _changed(start.ids, [*taken, change]), 1, sum(one[0] for one in (*taken, change))
            )
            if design.valid:
                taken.append(change)
                if len(taken) > 1:
                    yield design


def _best(odds: Tensor, sites: Sequence[int]) -> list[Change]:
    values, order = odds.flatten().sort(descending=True, stable=True)
    width, finite = odds.shape[1], int(values.isfinite().sum())
    rows = zip(values[:finite].tolist(), order[:finite].tolist(), strict=True)
    return [(value, sites[at // width], at % width) for value, at in rows]


def _changed(ids: Sequence[int], changes: Sequence[Change]) -> list[int]:
    row = [*ids]
    for _, site, token in changes:
        row[site] = token
    return row
