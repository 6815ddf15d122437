"""How strong an edit is: the dose, its effect on what a subject predicts, and the window in which designs stay sound.

Methods are compared at equal D(α) = mean over tokens of KL(p₀ ‖ p_α) in nats, not at equal α. It is not monotone in α:
a grid is scanned upward, and the first bracket of the target is cut until D is near enough.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf, isfinite, isnan, log

import numpy as np
import torch

from isotrace.base.errors import InputError
from isotrace.base.identity import identity
from isotrace.domains.domain import Domain
from isotrace.interventions import Plan
from isotrace.steering.edits import Calibrated, Edits
from isotrace.steering.questions import Questions
from isotrace.subjects.subject import Batch, Subject

TARGETS = (0.025, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5)
GRID = tuple(2.0 ** (i / 2) for i in range(-16, 13))
TOLERANCE = 0.05
HALVINGS = 40
MORE_DEGENERATE, MORE_PERPLEXED, FEWER_VALID, UNUSUAL = 0.05, 1.2, 0.8, 0.01


@dataclass(eq=False)
class Dose:
    """D(α) of `edits` on `questions`; what was measured once is kept."""

    edits: Edits
    questions: Questions
    measured: dict[float, float] = field(default_factory=lambda: {0.0: 0.0})

    def __post_init__(self) -> None:
        self._clean = self.questions.plain

    def at(self, alpha: float) -> float:
        """Raises InputError where the subject's predictions are no numbers any more."""
        if alpha not in self.measured:
            found = float(self.each(self.edits.plan(alpha)).mean())
            if not isfinite(found):
                raise InputError(f"at α = {alpha:.3g} the subject predicts NaN: give a smaller dose.")
            self.measured[alpha] = found
        return self.measured[alpha]

    def each(self, plan: Plan) -> torch.Tensor:
        """KL(p₀ ‖ p) in nats of every token asked about, float64 `[n]`."""
        pairs = zip(self._clean, self.questions.answers(plan), strict=True)
        return torch.cat([(p.double().exp() * (p.double() - q.double())).sum(-1).cpu() for p, q in pairs])

    def reach(self, target: float, grid: Sequence[float] = GRID, tolerance: float = TOLERANCE) -> Calibrated:
        """The strength, of the sign of `grid`, with D within `tolerance` of `target`, inside the first bracket that
        `grid`, of rising size, finds. Raises InputError for a target that is not reached, with the largest dose that
        is, and where D jumps past it."""
        if not 0 < target < inf:
            raise InputError(f"a dose of {target} nats is none: give a number above 0.")
        low, sign = 0.0, 1 if grid[0] > 0 else -1
        for high in map(abs, grid):
            if self.at(sign * high) >= target * (1 - tolerance):
                return self._halved(target, low, high, sign, tolerance, grid)
            low = high
        best = max((sign * abs(alpha) for alpha in grid), key=self.at)
        raise InputError(
            f"a dose of {target} nats is not reached by {self.edits.method}: the largest is {self.at(best):.3g}, at "
            f"α = {best:.3g}. Give a smaller one, or other layers."
        )

    def _halved(self, target: float, low: float, high: float, sign: int, tolerance: float, grid: Sequence[float]):
        """D is about a power of α: every other cut is where that puts the target, and those between halve, so that a
        jump cannot stall them."""
        for step in range(HALVINGS):
            ends = self.at(sign * low), self.at(sign * high)
            share = log(target / ends[0]) / log(ends[1] / ends[0]) if step % 2 == 0 and ends[0] > 0 else 0.5
            middle = high if abs(ends[1] - target) <= tolerance * target else _between(low, high, share)
            kl = self.at(sign * middle)
            if abs(kl - target) <= tolerance * target:
                asked = self.questions
                how = {
                    "objective": asked.subject.objective, "inputs": asked.inputs, "tokens": asked.n,
                    "data": identity([batch.ids for batch in asked.batches]), "tolerance": tolerance,
                    "grid": [grid[0], grid[-1]],
                }  # fmt: skip
                return Calibrated(sign * middle, kl, target, how)
            low, high = (middle, high) if kl < target else (low, middle)
        raise InputError(
            f"a dose of {target} nats is passed at a jump of {self.edits.method}, from {self.at(sign * low):.3g} to "
            f"{self.at(sign * high):.3g} at α = {sign * high:.3g}: give a dose outside of it, or edit without clamping."
        )


def _between(low: float, high: float, share: float) -> float:
    return low * (high / low) ** share if low > 0 else high / 2


def calibrated(
    edits: Edits, subject: Subject, batches: Sequence[Batch], target: float, *,
    grid: Sequence[float] = GRID, tolerance: float = TOLERANCE,
) -> Edits:  # fmt: skip
    """`edits` at the dose `target` in nats on calibration inputs, see `Questions.of` and `Dose.reach`."""
    edits.check(subject)
    return replace(edits, dose=Dose(edits, Questions.of(subject, batches)).reach(target, grid, tolerance))


def perplexities(judge: Subject, batches: Sequence[Batch], writer: Subject) -> np.ndarray:
    """float64 `[inputs]`: exp of the mean negative log-likelihood of the tokens of every input under `judge`: each
    masked alone (pseudo-perplexity), or from those before it. Raises InputError where `judge` is what wrote them: it
    finds its own mistakes likely."""
    if judge.files.weights_sha256 == writer.files.weights_sha256:
        raise InputError(f"{judge.source} wrote these sequences: judge them by another model.")
    asked = Questions.of(judge, batches)
    pairs = zip(asked.answers(), asked.truth, strict=True)
    losses = torch.cat([-p.gather(-1, truth[:, None])[:, 0].double().cpu() for p, truth in pairs])
    rows = torch.cat(asked.rows).cpu()
    n = sum(len(batch.ids) for batch in batches)
    sums, counts = (torch.zeros(n).double().index_add(0, rows, x) for x in (losses, torch.ones_like(losses)))
    return (sums / counts).exp().numpy()


def usual_floor(domain: Domain, texts: Sequence[str]) -> float | None:
    """What all but a hundredth of `texts` stay above in `Domain.complexity`; None where the domain has no such number.
    Raises InputError for a text that the domain cannot read."""
    found = np.array([domain.complexity(text) for text in texts])
    return None if np.isnan(found).all() else float(np.nanquantile(found, UNUSUAL))


def degenerate_share(
    domain: Domain, designs: Sequence[str], starts: Sequence[str | None], floor: float | None
) -> tuple[float, int]:
    """(share of those that the domain can read, NaN of none; how many it cannot), see `Domain.degenerate`."""
    found: list[bool] = []
    for design, start in zip(designs, starts, strict=True):
        try:
            found.append(domain.degenerate(design, start, floor) is not None)
        except InputError:
            continue
    return (sum(found) / len(found) if found else float("nan")), len(designs) - len(found)


@dataclass(frozen=True)
class Window:
    """`largest`: the largest dose up to which all tried are sound, 0 = none is; `ends`: why the next is not, None where
    no larger one was tried."""

    largest: float
    ends: str | None


def safe_window(
    doses: Sequence[float], degenerate: Sequence[float], perplexity: Sequence[float], valid: Sequence[float],
    plain: tuple[float, float, float],
) -> Window:  # fmt: skip
    """Of development starts: `degenerate` share of the valid designs, `perplexity` of these under another model and the
    `valid` share at every dose, and of the unsteered subject (`plain`). A dose is sound with at most 5 points more
    degenerate, a perplexity of at most 1.2 times as much and at least 0.8 times as many valid; a number that is NaN is
    not. Raises InputError without an unsteered one."""
    if any(isnan(value) for value in plain):
        raise InputError("the unsteered subject gave no readable design to compare with: give more starts.")
    largest = 0.0
    for dose, share, value, parsed in sorted(zip(doses, degenerate, perplexity, valid, strict=True)):
        if isnan(share):
            return Window(largest, f"at {dose:.3g} nats no design is readable")
        if not share <= plain[0] + MORE_DEGENERATE:
            return Window(largest, f"at {dose:.3g} nats {share:.0%} are degenerate, unsteered {plain[0]:.0%}")
        if not value <= plain[1] * MORE_PERPLEXED:
            return Window(largest, f"at {dose:.3g} nats the perplexity is {value:.3g}, unsteered {plain[1]:.3g}")
        if not parsed >= plain[2] * FEWER_VALID:
            return Window(largest, f"at {dose:.3g} nats {parsed:.0%} are valid, unsteered {plain[2]:.0%}")
        largest = dose
    return Window(largest, None)
