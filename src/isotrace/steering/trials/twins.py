"""What an edit is compared with at its doses: edits that mean nothing, how far they go, and the edit's rank among them.

random      directions drawn at random, the same in every direction
covariance  directions drawn from the covariance of what flows there, where the random ones are weaker
shuffled    what the method finds for labels that were dealt out anew, confounds held as they were
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log2
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import IsotraceError
from isotrace.base.progress import Progress
from isotrace.steering.contrast import Contrast
from isotrace.steering.edits import Edits
from isotrace.steering.kinds import covariance
from isotrace.steering.questions import Questions
from isotrace.steering.states import by_position
from isotrace.steering.trials.arm import Arm, Strengths, Workshop
from isotrace.subjects.subject import Subject

Null = Literal["random", "covariance", "shuffled"]
NULLS: tuple[Null, ...] = get_args(Null)
USUAL: tuple[Null, ...] = ("random", "shuffled")
"""What studies compare with."""
SEQUENCES = 100
"""Whose tokens a covariance is of."""


@dataclass(frozen=True, eq=False)
class Twins:
    """`effects`: null → dose → float64 `[twins]`, NaN of one that does not reach it or whose designs are not valid.
    `lost`: (null, dose, why) of those that do not reach it, or that the method does not find. `first`: null → the first
    twin that reached the largest dose, at it."""

    effects: Mapping[str, Mapping[float, np.ndarray]]
    lost: tuple[tuple[str, float, str], ...] = ()
    first: Mapping[str, Edits] = field(default_factory=dict)

    def at(self, dose: float, null: str) -> np.ndarray:
        """Effects that are known at `dose`."""
        found = self.effects.get(null, {}).get(dose, np.zeros(0))
        return found[np.isfinite(found)]

    def p(self, arm: Arm, null: str | None = None) -> float:
        """Of an effect as large among those of `null` at its dose, (1 + those) / (1 + all); None: the largest of all
        nulls. NaN where nothing is known of one of them, or of the effect of the arm."""
        if null is None:
            every = [self.p(arm, name) for name in self.effects]
            return float(np.max(every)) if every else float("nan")
        known = self.at(arm.dose, null)
        if not len(known) or not np.isfinite(arm.effect):
            return float("nan")
        return (1 + int((known >= arm.effect).sum())) / (1 + len(known))

    def beside(self, arm: Arm) -> dict[str, Any]:
        """What stands beside an arm in a table, four numbers of each null and p; None where none was tried."""
        found: dict[str, Any] = {}
        for null in self.effects:
            known = self.at(arm.dose, null)
            found |= {
                null: len(known),
                f"{null}_mean": float(known.mean()) if len(known) else None,
                f"{null}_sd": float(known.std(ddof=1)) if len(known) > 1 else None,
                f"{null}_p": self.p(arm, null) if len(known) else None,
            }
        p = self.p(arm)
        return found | {"p": p if np.isfinite(p) else None}


def compared(
    draws: Mapping[str, Callable[[int], Edits]], like: Sequence[Arm], workshop: Workshop, asked: Questions,
    plain: Arm, progress: Progress,
) -> Twins:  # fmt: skip
    """What `draws` give, at the doses of `like`, arms of the edit, from small to large. One serves all of them, each
    calibrated."""
    n, doses = workshop.settings.n_twins, [arm.dose for arm in like]
    grid = grid_of(like)
    if not grid or not n:
        return Twins({})
    effects = {null: {dose: np.full(n, np.nan) for dose in doses} for null in draws}
    lost: list[tuple[str, float, str]] = []
    largest: dict[str, Edits] = {}
    for null, draw in draws.items():
        for number in progress(range(n), f"{null} twins"):
            name = name_of(null, number)
            try:
                found = Strengths(name, draw(number), asked, workshop.memo)
            except IsotraceError as error:  # a method may find nothing in labels that mean nothing
                lost += [(null, dose, str(error)) for dose in doses]
                continue
            for dose in doses:
                dosed = found.reach(dose, grid)
                if isinstance(dosed, str):
                    lost.append((null, dose, dosed))
                    continue
                if dose == doses[-1]:
                    largest.setdefault(null, dosed)
                effects[null][dose][number] = workshop.arm(f"{name} {dose}", dose, dosed, plain).effect
    return Twins(effects, tuple(lost), largest)


def grid_of(like: Sequence[Arm]) -> list[float]:
    """Strengths that twins are tried at, to meet the doses of `like`; none where there is nothing to meet."""
    strengths = [abs(arm.reached.alpha) for arm in like if arm.reached is not None]
    if not strengths:
        return []
    # powers of 2 from below a quarter of the edit's own strength on: one grid for all doses, so that what was measured
    # serves them all, and a dose is met at the same strength whichever others are asked for
    first, steps = floor(log2(min(strengths))) - 2, ceil(log2(max(strengths) / min(strengths)))
    return [2.0**i for i in range(first, first + 10 + steps)]


def name_of(null: str, number: int) -> str:
    return f"{'' if null == 'random' else null + ' '}twin {number}"


def covariances(subject: Subject, contrast: Contrast, edits: Edits) -> list[Tensor]:
    """`[d, d]` of what flows at every edit, over all tokens of some sequences of either side."""
    rows = np.flatnonzero(contrast.side)[:SEQUENCES]
    examples, found = [contrast.examples[i] for i in rows], []
    for edit in edits.edits:
        states = by_position(subject, examples, edit.components, (edit.layer,))
        found.append(covariance(torch.cat([state[edit.layer] for _, state in states])))
    return found
