"""Random twins of an edit at its doses: how far directions go that were drawn, and the edit's rank among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log2
from typing import Any

import numpy as np

from isotrace.base.progress import Progress
from isotrace.steering.edits import Edits
from isotrace.steering.questions import Questions
from isotrace.steering.trials.arm import Arm, Strengths, Workshop


@dataclass(frozen=True, eq=False)
class Twins:
    """`effects`: dose → float64 `[twins]`, NaN of one that does not reach it or whose designs are not valid. `lost`:
    (dose, why) of those that do not reach it."""

    effects: Mapping[float, np.ndarray]
    lost: tuple[tuple[float, str], ...] = ()

    def at(self, dose: float) -> np.ndarray:
        """Effects that are known at `dose`."""
        found = self.effects.get(dose, np.zeros(0))
        return found[np.isfinite(found)]

    def p(self, arm: Arm) -> float:
        """Of an effect as large among random directions at its dose, (1 + those) / (1 + all); NaN without any, and for
        an arm whose effect is not known."""
        known = self.at(arm.dose)
        if not len(known) or not np.isfinite(arm.effect):
            return float("nan")
        return (1 + int((known >= arm.effect).sum())) / (1 + len(known))

    def beside(self, arm: Arm) -> dict[str, Any]:
        """What stands beside an arm in a table; None where no twin was tried."""
        known = self.at(arm.dose)
        return {
            "twins": len(known),
            "twins_mean": float(known.mean()) if len(known) else None,
            "twins_sd": float(known.std(ddof=1)) if len(known) > 1 else None,
            "p": self.p(arm) if len(known) else None,
        }


def random_twins(
    edits: Edits, arms: Sequence[Arm], workshop: Workshop, asked: Questions, plain: Arm, progress: Progress
) -> Twins:
    """Of `edits` at the doses of `arms`, from small to large. One direction serves all of them, each calibrated."""
    settings = workshop.settings
    effects, lost = {arm.dose: np.full(settings.n_twins, np.nan) for arm in arms}, []
    strengths = [abs(arm.reached.alpha) for arm in arms if arm.reached is not None]
    if not strengths or not settings.n_twins:
        return Twins({})
    # powers of 2 from below a quarter of the edit's own strength on: one grid for all doses, so that what was measured
    # serves them all, and a dose is met at the same strength whichever others are asked for
    first, steps = floor(log2(min(strengths))) - 2, ceil(log2(max(strengths) / min(strengths)))
    grid = [2.0**i for i in range(first, first + 10 + steps)]
    for number in progress(range(settings.n_twins), "random twins"):
        twin = edits.twin((settings.seed + 1) * 10_000 + number)
        found = Strengths(f"twin {number}", twin, asked, workshop.memo)
        for arm in arms:
            dosed = found.reach(arm.dose, grid)
            if isinstance(dosed, str):
                lost.append((arm.dose, dosed))
                continue
            made = workshop.arm(f"twin {number} {arm.dose}", arm.dose, dosed, plain)
            effects[arm.dose][number] = made.effect
    return Twins(effects, tuple(lost))
