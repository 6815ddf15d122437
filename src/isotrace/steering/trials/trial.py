"""One trial of a way to steer: fitted, calibrated, compared with its random twins, and told on starts of its own.

1. deal      groups of sequences go to three parts: the direction is fitted on the first (a half), the judge on the
             second (three tenths), and the third is told: it checks the judge and gives the starts
2. fit       confounds matched or held fixed, see `contrast`; the method of `directions`
3. dose      strengths of equal KL, see `dose`, on negative sequences of the second part
4. check     designs from other negative sequences of the second part, for development: up to which dose they are sound,
             see `safety`
5. design    from every start, unsteered and at each dose, by a generator of `decoding` with the edit on in all rounds
6. judge     what the forest says of the valid designs, less what it says of the unsteered ones of the same start
7. twins     doses inside the safe window again with edits that mean nothing: the edit's rank among them, see `twins`
8. control   how much of the effect length, counts of tokens and the most inserted tokens leave, see `composition`;
             whether the edit takes a path that the data take, see `response.dormant`; and whether it shows, lasts and
             is set back, see `response.reaction`

What is claimed is read at the largest dose inside the safe window.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from isotrace.base.errors import InputError, IsotraceError
from isotrace.base.progress import Progress, silent
from isotrace.base.work import claimed
from isotrace.domains.domain import Domain
from isotrace.engine.spread import Helpers
from isotrace.interventions.components import Components
from isotrace.steering.contrast import Contrast
from isotrace.steering.edits import Edits
from isotrace.steering.questions import Questions
from isotrace.steering.response.detection import FALSE_ALARMS
from isotrace.steering.response.dormant import Dormancy, dormancy
from isotrace.steering.response.reaction import Reaction, reaction
from isotrace.steering.trials.arm import Arm, Strengths, Workshop
from isotrace.steering.trials.composition import Composition, composition
from isotrace.steering.trials.drift import drift, property_drift
from isotrace.steering.trials.experiment import Experiment, asked_about
from isotrace.steering.trials.judge import Exact, Judge
from isotrace.steering.trials.safety import Safety, check_reader, checked, safety
from isotrace.steering.trials.settings import TrialSettings
from isotrace.steering.trials.table import rising
from isotrace.steering.trials.twins import Null, Twins, compared
from isotrace.subjects.subject import Subject

DETECTED, HIDDEN = 30, 6
"""At most so many sequences on which detectors of an edit are fitted, and others on which they are judged, by at most
so many tokens of each: that costs less than a twentieth of what the twins do."""


@dataclass(frozen=True, eq=False)
class Trial:
    """`edits` at the dose that is claimed, without a strength where no dose is safe. `dormant`: of every edit there,
    whether it takes a path that the data take too, or why that is not known. `arms`: unsteered, then the doses;
    `twins`: effects of the random twins. `starts`: texts by row. `drift` and `properties`: what else moved at the
    claimed dose, in standard deviations of the data: confound, or number of the domain, → mean change from the
    unsteered designs. `composition` and
    `reaction` (to the edit, beside that to a random twin): None where no dose is safe. `rejects`: rows of the data and
    of the starts that cannot be used."""

    domain: Domain
    contrast: Contrast
    edits: Edits
    judge: Judge | Exact
    starts: tuple[str, ...]
    arms: tuple[Arm, ...]
    safety: Safety
    twins: Twins
    settings: TrialSettings
    drift: dict[str, float]
    composition: Composition | None
    rejects: tuple[tuple[int, str, str], ...] = ()
    dormant: tuple[Dormancy, ...] | str = ()
    reaction: Reaction | None = None
    properties: dict[str, float] = field(default_factory=dict)

    @property
    def safe(self) -> tuple[Arm, ...]:
        """Steered arms inside the safe window, from small to large."""
        return tuple(arm for arm in self.arms[1:] if arm.reached is not None and self.safety.holds(arm.dose))

    @property
    def best(self) -> Arm | None:
        """What is claimed: the largest dose inside the safe window."""
        return self.safe[-1] if self.safe else None

    @property
    def p(self) -> float:
        """Of an effect as large among twins at that dose, the largest of all nulls; NaN without twins."""
        return float("nan") if self.best is None else self.twins.p(self.best)

    @property
    def rising(self) -> dict[str, Any]:
        """Order of dose and effect inside the safe window."""
        return rising(self.safe, self.settings.seed)


def trial(
    subject: Subject, contrast: Contrast, settings: TrialSettings, *, components: Components | None = None,
    starts: Sequence[str] = (), exact: Exact | None = None, reader: Subject | None = None,
    nulls: Sequence[Null] = ("random",), work: Path | None = None, helpers: Helpers | None = None,
    progress: Progress = silent,
) -> Trial:  # fmt: skip
    """`exact`: the property, where it can be computed, in place of the forest. `starts`: texts to begin from, none:
    negative sequences of the part that is told. `reader`: a second subject of the domain, under which designs are to
    stay likely; None: that is not known. `nulls`: what the edit is compared with; more of them may be asked for later
    without doing anything else again. `work`: a folder that keeps strengths and designs as they are made, so that a
    killed trial goes on; `helpers`: others who do parts of it there, see `Experiment.do`.

    Raises InputError where a part lacks a side, no dose is reached, no start can be used, and as `check_reader`;
    SubjectError as the method and the generator do, RunError as `claimed`."""
    if reader is not None:
        check_reader(reader, subject)
    if subject.objective == "causal" and not starts:
        raise InputError(f"{subject.source} goes on with what it is given, and whole sequences are at their end: give "
                         "starts, beginnings of sequences.")  # fmt: skip
    with nullcontext() if work is None else claimed(work) as folder:
        of = Experiment.of(
            subject, contrast, settings, components=components, starts=starts, exact=exact, reader=reader, work=folder
        )
        return _tried(of, nulls, helpers, progress)


def _tried(of: Experiment, nulls: Sequence[Null], helpers: Helpers | None, progress: Progress) -> Trial:
    subject, settings, domain, reader = of.subject, of.settings, of.domain, of.reader
    (_, judging, told), chosen, others = of.parts, of.chosen, of.others
    judge = of.judge
    edits = of.found(progress)
    asked, workshop, beside = of.asked, of.workshop, of.beside
    if helpers is not None:
        helpers.do(of.doses(), "doses")

    strengths, plain = Strengths("edit", edits, asked, of.memo), workshop.arm("told 0", 0.0, None)
    arms, tried = [plain], [checked(beside, 0.0, None, reader)]
    for dose in progress(sorted(settings.doses), "steering"):
        dosed = strengths.reach(dose)
        if isinstance(dosed, str):
            arms.append(Arm(dose, why=dosed))
            continue
        tried.append(checked(beside, dose, dosed, reader))
        arms.append(workshop.arm(f"told {dose}", dose, dosed, plain))
    if len(tried) == 1:
        raise InputError(str(arms[1].why))
    found = Trial(
        domain, of.held, edits, judge, chosen, tuple(arms), safety(tried, reader, len(others)), Twins({}), settings, {},
        None, plain.designs.rejects if plain.designs is not None else (),
    )  # fmt: skip
    best = found.best
    if best is None:
        return found
    draws = {null: partial(of.drawn, null=null) for null in nulls}
    like = found.safe if settings.twins_at == "every" else (best,)
    if helpers is not None:
        helpers.do(of.twins(nulls, like), "twins")
    twins = compared(draws, like, workshop, asked, plain, progress)
    return replace(
        found,
        edits=replace(edits, dose=best.reached),
        reaction=_reaction(replace(edits, dose=best.reached), twins, judging, workshop, asked),
        dormant=_dormant(subject, replace(edits, dose=best.reached), judging, settings.seed),
        twins=twins,
        drift=drift(subject, domain, of.contrast, plain, best),
        properties=property_drift(subject, domain, of.contrast, plain, best, settings.seed),
        composition=composition(workshop, told, plain, best),
    )


def _dormant(subject: Subject, edits: Edits, contrast: Contrast, seed: int) -> tuple[Dormancy, ...] | str:
    try:
        return tuple(dormancy(subject, edits, contrast, seed=seed))
    except IsotraceError as error:
        return str(error)


def _reaction(edits: Edits, twins: Twins, judging: Contrast, workshop: Workshop, asked: Questions) -> Reaction:
    subject, settings = workshop.subject, workshop.settings
    rng = np.random.default_rng((settings.seed, 21))
    rows, n = rng.permutation(len(judging)), min(DETECTED, len(judging) // 2)
    halves = tuple(
        asked_about(subject, [judging.examples[i].text for i in part], rng, min(settings.n_places, HIDDEN))
        for part in (rows[:n], rows[n : 2 * n])
    )
    return reaction(
        subject, edits, twins.first.get("random"), (halves[0], halves[1]) if n * FALSE_ALARMS >= 1 else None, asked,
        workshop.starts, workshop.rewritten if subject.objective == "masked" else None, settings.seed,
    )  # fmt: skip
