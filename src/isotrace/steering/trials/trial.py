"""One trial of a way to steer: fitted, calibrated, compared with its random twins, and told on starts of its own.

1. deal      groups of sequences go to three parts: the direction is fitted on the first (a half), the judge on the
             second (three tenths), and the third is told: it checks the judge and gives the starts
2. fit       confounds matched or held fixed, see `contrast`; the method of `directions`
3. dose      strengths of equal KL, see `dose`, on negative sequences of the second part
4. design    from every start, unsteered and at each dose, by a generator of `decoding` with the edit on in all rounds
5. judge     what the forest says of the valid designs, less what it says of the unsteered ones of the same start
6. twins     the largest dose that was reached again with directions drawn at random: the edit's rank among them
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, silent
from isotrace.base.settings import checked_seed
from isotrace.domains.domain import Domain, domain_of
from isotrace.interventions import Plan
from isotrace.interventions.components import Components
from isotrace.stats.bootstrap import mean_interval
from isotrace.steering.contrast import Contrast, counts
from isotrace.steering.decoding.decoder import DECODERS
from isotrace.steering.decoding.run import Designs
from isotrace.steering.directions.direction import DIRECTIONS
from isotrace.steering.dose import Dose, degenerate_share, usual_floor
from isotrace.steering.edits import Calibrated, Edits
from isotrace.steering.questions import Questions
from isotrace.steering.trials.judge import Exact, Judge
from isotrace.subjects.subject import Batch, Subject

SHARES = (0.5, 0.3, 0.2)
"""Of the groups: for the direction, for the judge and the dose, for what is told."""
WORST = 5
"""Of confounds and of what else moved, those that are told."""
CALIBRATION, PLACES = 12, 12
"""Sequences that doses are measured on, and tokens asked about in each."""
GENERATORS = {"masked": "gibbs"}
"""Objective → generator where none is named; `sample` for the others."""
Confounds = Literal["match", "residual", "free"]


@dataclass(frozen=True)
class TrialSettings:
    """`doses`: nats. `n_designs` of each of at most `n_starts` starts. `n_twins`: random directions. `more`: settings
    of the method, by name."""

    method: str = "difference_in_means"
    layers: tuple[int, ...] = ()
    confounds: Confounds = "residual"
    doses: tuple[float, ...] = (0.025, 0.05, 0.1, 0.25, 0.5)
    n_designs: int = 4
    n_starts: int = 12
    n_twins: int = 20
    generator: str | None = None
    seed: int = 0
    more: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        if not self.doses or not all(dose > 0 for dose in self.doses):
            raise InputError("doses are numbers of nats above 0: give one at least.")


@dataclass(frozen=True, eq=False)
class Arm:
    """What came out under one edit. `dose` asked for, 0 unsteered; `reached`, None where it was not, and `why`.
    `values`: what the judge says of every design, NaN of one that is not valid. `effects [starts]`: the mean over a
    start's valid designs less that of its unsteered ones, NaN where either has none. `degenerate`: share."""

    dose: float
    reached: Calibrated | None = None
    why: str | None = None
    designs: Designs | None = None
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    effects: np.ndarray = field(default_factory=lambda: np.zeros(0))
    degenerate: float = float("nan")

    @property
    def effect(self) -> float:
        known = self.effects[np.isfinite(self.effects)]
        return float(known.mean()) if len(known) else float("nan")


@dataclass(frozen=True, eq=False)
class Trial:
    """`edits` at the largest dose that was reached. `arms`: unsteered, then the doses; `twins`: effects of the random
    twins at the largest dose, and `lost` why a twin did not reach it. `starts`: texts by row. `drift`: what else moved
    at the largest dose, in standard deviations of the data: confound → mean change from the unsteered designs.
    `rejects`: rows of the data and of the starts that cannot be used."""

    domain: Domain
    contrast: Contrast
    edits: Edits
    judge: Judge | Exact
    starts: tuple[str, ...]
    arms: tuple[Arm, ...]
    twins: np.ndarray
    lost: tuple[str, ...]
    settings: TrialSettings
    drift: dict[str, float]
    rejects: tuple[tuple[int, str, str], ...] = ()

    @property
    def best(self) -> Arm:
        """At the largest dose that was reached."""
        return next(arm for arm in reversed(self.arms) if arm.reached is not None)

    @property
    def p(self) -> float:
        """Of an effect as large among random directions, (1 + those) / (1 + all); NaN without twins."""
        known = self.twins[np.isfinite(self.twins)]
        return (1 + int((known >= self.best.effect).sum())) / (1 + len(known)) if len(known) else float("nan")


def trial(
    subject: Subject, contrast: Contrast, settings: TrialSettings, *, components: Components | None = None,
    starts: Sequence[str] = (), exact: Exact | None = None, progress: Progress = silent,
) -> Trial:  # fmt: skip
    """`exact`: the property, where it can be computed, in place of the forest. `starts`: texts to begin from, none:
    negative sequences of the part that is told. Raises InputError where a part lacks a side, no dose is reached and no
    start can be used; SubjectError as the method and the generator do."""
    if subject.objective == "causal" and not starts:
        raise InputError(f"{subject.source} goes on with what it is given, and whole sequences are at their end: give "
                         "starts, beginnings of sequences.")  # fmt: skip
    domain = domain_of(str(subject.files.domain))
    fitting, judging, told = contrast.split(SHARES, settings.seed)
    judge = exact or Judge.fitted(domain, judging, told, settings.seed)
    if settings.confounds != "free":
        fitting = fitting.match() if settings.confounds == "match" else fitting.residual()
    entry = DIRECTIONS[settings.method]
    edits = entry.fit(
        subject, fitting, components=components, layers=settings.layers, progress=progress, **settings.more
    )
    asked = Questions.of(subject, [calibration(subject, judging, settings.seed)])
    chosen = tuple(starts) or tuple(told.examples[i].text for i in told.negative[: settings.n_starts])
    made = _Made(subject, domain, judge, chosen, settings, usual_floor(domain, [e.text for e in judging.examples]))
    plain = made.arm(0.0, None)
    arms, doses = [plain], Dose(edits, asked)
    for dose in progress(sorted(settings.doses), "steering"):
        try:
            reached = doses.reach(dose)
        except InputError as error:
            arms.append(Arm(dose, why=str(error)))
            continue
        arms.append(made.arm(dose, replace(edits, dose=reached), plain))
    if all(arm.reached is None for arm in arms[1:]):
        raise InputError(str(arms[1].why))
    largest = next(arm for arm in reversed(arms) if arm.reached is not None)
    assert largest.reached is not None
    near = tuple(abs(largest.reached.alpha) * 2.0 ** (i / 2) for i in range(-6, 13))  # of a twin, from an eighth on
    twins, lost = [], []
    for number in progress(range(settings.n_twins), "random twins"):
        twin = edits.twin((settings.seed + 1) * 10_000 + number)
        try:
            reached = Dose(twin, asked).reach(largest.dose, near)
        except InputError as error:
            lost.append(str(error))
            continue
        twins.append(made.arm(largest.dose, replace(twin, dose=reached), plain).effect)
    own = replace(edits, dose=largest.reached)
    moved = drift(subject, domain, contrast, plain, largest)
    told = np.asarray(twins, np.float64), tuple(lost)
    return Trial(domain, fitting, own, judge, chosen, tuple(arms), *told, settings, moved)


def drift(subject: Subject, domain: Domain, contrast: Contrast, plain: Arm, steered: Arm) -> dict[str, float]:
    """Over starts with a valid design of both: mean over designs of either, by start."""
    means: list[dict[int, np.ndarray]] = []
    for arm in (plain, steered):
        assert arm.designs is not None  # unsteered and reached arms have some
        rows: dict[int, list[list[int]]] = {}
        for row in arm.designs.rows:
            if row.valid:
                found = counts(subject, domain, row.sequence)
                rows.setdefault(row.start, []).append([found[name] for name in contrast.confounds])
        means.append({start: np.mean(found, 0) for start, found in rows.items()})
    both = [means[1][start] - means[0][start] for start in means[1] if start in means[0]]
    if not both:
        return {name: float("nan") for name in contrast.confounds}
    moved = np.mean(both, 0) / [column.std() for column in contrast.confounds.values()]
    return dict(zip(contrast.confounds, moved.tolist(), strict=True))


def dose_row(arm: Arm, seed: int) -> dict[str, Any]:
    """What an arm is told by, None where it was not made."""
    known = arm.effects[np.isfinite(arm.effects)]
    low, high = mean_interval(known, seed)
    counted = arm.designs is not None
    rows = arm.designs.rows if arm.designs is not None else ()
    return {
        "dose": arm.dose,
        "alpha": 0.0 if arm.dose == 0 else None if arm.reached is None else arm.reached.alpha,
        "kl": 0.0 if arm.dose == 0 else None if arm.reached is None else arm.reached.kl,
        "effect": arm.effect if counted else None,
        "ci": [low, high],
        "starts": len(known),
        "valid": sum(row.valid for row in rows) / len(rows) if rows else None,
        "distinct": len({row.sequence for row in rows}) if rows else None,
        "degenerate": arm.degenerate if counted else None,
        "forwards": arm.designs.forwards if arm.designs is not None else None,
        "why": arm.why,
    }


def worst(values: Mapping[str, float]) -> list[dict[str, Any]]:
    """The largest of them, NaN last."""
    ranked = sorted(values.items(), key=lambda pair: -abs(pair[1]) if pair[1] == pair[1] else 0.0)
    return [{"name": name, "value": value} for name, value in ranked[:WORST]]


def calibration(subject: Subject, contrast: Contrast, seed: int) -> Batch:
    """Negative sequences of `contrast`, and some tokens of each that are asked about."""
    rng, rows = np.random.default_rng((seed, 16)), contrast.negative
    texts = [contrast.examples[i].text for i in rng.permutation(rows)[:CALIBRATION]]
    batch = subject.tokenize(texts, sources=texts) if subject.objective == "translating" else subject.tokenize(texts)
    free = batch.mask & ~subject.special(batch.ids)
    sites = torch.zeros_like(free)
    for row in range(len(texts)):
        places = free[row].nonzero()[:, 0].cpu()
        sites[row, places[torch.from_numpy(rng.permutation(len(places))[:PLACES])]] = True
    return replace(batch, sites=sites)


@dataclass(frozen=True, eq=False)
class _Made:
    """What every arm is made with."""

    subject: Subject
    domain: Domain
    judge: Judge | Exact
    starts: tuple[str, ...]
    settings: TrialSettings
    floor: float | None

    def arm(self, dose: float, edits: Edits | None, plain: Arm | None = None) -> Arm:
        name = self.settings.generator or GENERATORS.get(self.subject.objective, "sample")
        generator = DECODERS[name](n=self.settings.n_designs, seed=self.settings.seed)
        plans = {}  # rounds of an edit that is on in all are one plan
        edit = Plan() if edits is None else lambda r: plans.setdefault(r, edits.plan(round=r))
        designs = generator(self.subject, self.starts, edit)
        valid = [row for row in designs.rows if row.valid]
        said = iter(self.judge([row.sequence for row in valid]).tolist())
        values = np.asarray([next(said) if row.valid else np.nan for row in designs.rows])
        means = self._means(designs, values)
        base = means if plain is None else self._means(plain.designs, plain.values)
        share, _ = degenerate_share(
            self.domain, [row.sequence for row in valid], [self._from(row.start) for row in valid], self.floor
        )
        return Arm(dose, None if edits is None else edits.dose, None, designs, values, means - base, share)

    def _from(self, row: int) -> str | None:
        """The start, where designs are changes of it."""
        return self.starts[row] if self.subject.objective != "causal" else None

    def _means(self, designs: Designs | None, values: np.ndarray) -> np.ndarray:
        assert designs is not None  # of an arm that was made
        found = np.full(len(self.starts), np.nan)
        rows = np.asarray([row.start for row in designs.rows])
        for start in range(len(self.starts)):
            own = values[rows == start]
            own = own[np.isfinite(own)]
            if len(own):
                found[start] = own.mean()
        return found
