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
import torch

from isotrace.base.errors import InputError, IsotraceError
from isotrace.base.progress import Progress, silent
from isotrace.base.work import Memo, claimed
from isotrace.domains.domain import Domain, domain_of
from isotrace.interventions import Tokens
from isotrace.interventions.components import Components
from isotrace.interventions.plan import encoded
from isotrace.interventions.where import Which
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions.direction import DIRECTIONS
from isotrace.steering.dose import usual_floor
from isotrace.steering.edits import Edits
from isotrace.steering.kinds import EVERY
from isotrace.steering.questions import Questions
from isotrace.steering.response.detection import FALSE_ALARMS
from isotrace.steering.response.dormant import Dormancy, dormancy
from isotrace.steering.response.reaction import Reaction, reaction
from isotrace.steering.trials.arm import Arm, Strengths, Workshop
from isotrace.steering.trials.composition import Composition, composition
from isotrace.steering.trials.drift import drift, property_drift
from isotrace.steering.trials.judge import Exact, Judge
from isotrace.steering.trials.safety import Safety, check_reader, checked, development_starts, safety
from isotrace.steering.trials.settings import PLACES, TrialSettings
from isotrace.steering.trials.table import rising
from isotrace.steering.trials.twins import Null, Twins, compared, covariances
from isotrace.subjects.subject import Batch, Subject

SHARES = (0.5, 0.3, 0.2)
"""Of the groups: for the direction, for the judge and the dose, for what is told."""
CALIBRATION = 12
"""Sequences that doses are measured on."""
DETECTED, HIDDEN = 30, 6
"""At most so many sequences on which detectors of an edit are fitted, and others on which they are judged, by at most
so many tokens of each: that costs less than a twentieth of what the twins do."""
CACHE = 2
"""Raised when code changes what a killed trial has kept."""


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
    nulls: Sequence[Null] = ("random",), work: Path | None = None, progress: Progress = silent,
) -> Trial:  # fmt: skip
    """`exact`: the property, where it can be computed, in place of the forest. `starts`: texts to begin from, none:
    negative sequences of the part that is told. `reader`: a second subject of the domain, under which designs are to
    stay likely; None: that is not known. `nulls`: what the edit is compared with; more of them may be asked for later
    without doing anything else again. `work`: a folder that keeps strengths and designs as they are made, so that a
    killed trial goes on.

    Raises InputError where a part lacks a side, no dose is reached, no start can be used, and as `check_reader`;
    SubjectError as the method and the generator do, RunError as `claimed`."""
    if reader is not None:
        check_reader(reader, subject)
    if subject.objective == "causal" and not starts:
        raise InputError(f"{subject.source} goes on with what it is given, and whole sequences are at their end: give "
                         "starts, beginnings of sequences.")  # fmt: skip
    with nullcontext() if work is None else claimed(work) as folder:
        parts = components if components is None else encoded(components, {})
        memo = Memo(folder, CACHE, subject, contrast, settings, parts, [*starts], reader)
        return _tried(subject, contrast, settings, components, starts, exact, reader, nulls, memo, progress)


def _tried(
    subject: Subject, contrast: Contrast, settings: TrialSettings, components: Components | None,
    starts: Sequence[str], exact: Exact | None, reader: Subject | None, nulls: Sequence[Null], memo: Memo,
    progress: Progress,
) -> Trial:  # fmt: skip
    domain = domain_of(str(subject.files.domain))
    fitting, judging, told = _parts(contrast, settings.seed)
    chosen = tuple(starts) or tuple(told.examples[i].text for i in told.negative[: settings.n_starts])
    others = development_starts(subject, domain, judging, chosen, settings.n_development)
    judge = exact or Judge.fitted(domain, judging, told, settings.seed)

    def fitted(labels: Contrast, shown: Progress) -> Edits:
        edits = DIRECTIONS[settings.method].fit(
            subject, labels, components=components, layers=settings.layers, progress=shown, **settings.more
        )
        return placed(edits, subject, settings.where)

    held = held_fixed(fitting, settings)
    edits = fitted(held, progress)
    asked = Questions.of(subject, [calibration(subject, judging, settings.seed, settings.n_places)])
    floor = usual_floor(domain, [e.text for e in judging.examples])
    workshop = Workshop(subject, domain, judge, chosen, settings, floor, memo)
    beside = replace(workshop, starts=others)  # for development

    strengths, plain = Strengths("edit", edits, asked, memo), workshop.arm("told 0", 0.0, None)
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
        domain, held, edits, judge, chosen, tuple(arms), safety(tried, reader, len(others)), Twins({}), settings, {},
        None, plain.designs.rejects if plain.designs is not None else (),
    )  # fmt: skip
    best = found.best
    if best is None:
        return found
    within = covariances(subject, held, edits) if "covariance" in nulls else None

    def drawn(number: int, null: Null) -> Edits:
        seed = (settings.seed + 1) * 10_000 + number
        if null == "shuffled":
            return fitted(held_fixed(fitting.shuffled(seed), settings), silent)
        return edits.twin(seed, within if null == "covariance" else None)

    draws = {null: partial(drawn, null=null) for null in nulls}
    like = found.safe if settings.twins_at == "every" else (best,)
    twins = compared(draws, like, workshop, asked, plain, progress)
    return replace(
        found,
        edits=replace(edits, dose=best.reached),
        reaction=_reaction(replace(edits, dose=best.reached), twins, judging, workshop, asked),
        dormant=_dormant(subject, replace(edits, dose=best.reached), judging, settings.seed),
        twins=twins,
        drift=drift(subject, domain, contrast, plain, best),
        properties=property_drift(subject, domain, contrast, plain, best, settings.seed),
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


def _parts(contrast: Contrast, seed: int) -> tuple[Contrast, ...]:
    try:
        return contrast.split(SHARES, seed)
    except InputError as error:
        raise InputError(
            "groups of sequences are dealt to three parts, for the direction, for judge and development, and for what "
            f"is told: {error}"
        ) from None


def held_fixed(contrast: Contrast, settings: TrialSettings) -> Contrast:
    """With confounds matched or held fixed, as asked."""
    if settings.confounds == "free":
        return contrast
    return (contrast.match if settings.confounds == "match" else contrast.residual)(*settings.hold)


def placed(edits: Edits, subject: Subject, where: Which | None) -> Edits:
    """At the tokens `where`. None: as they are, but edits of every real token of a masked subject at the masked ones:
    what is about to be written is steered, and what stands around it is read as it is."""
    if where is not None:
        return edits.at(Tokens(where))
    if subject.objective != "masked":
        return edits
    masked = Tokens("masked")
    return replace(edits, edits=tuple(replace(e, where=masked) if e.where == EVERY else e for e in edits.edits))


def calibration(subject: Subject, contrast: Contrast, seed: int, n_places: int = PLACES) -> Batch:
    """Negative sequences of `contrast`, and `n_places` tokens of each that are asked about."""
    rng, rows = np.random.default_rng((seed, 16)), contrast.negative
    return asked_about(subject, [contrast.examples[i].text for i in rng.permutation(rows)[:CALIBRATION]], rng, n_places)


def asked_about(subject: Subject, texts: Sequence[str], rng: np.random.Generator, n_places: int) -> Batch:
    """`texts`, and `n_places` tokens of each as sites, drawn at random."""
    batch = subject.tokenize(texts, sources=texts) if subject.objective == "translating" else subject.tokenize(texts)
    free = batch.mask & ~subject.special(batch.ids)
    sites = torch.zeros_like(free)
    for row in range(len(texts)):
        places = free[row].nonzero()[:, 0].cpu()
        sites[row, places[torch.from_numpy(rng.permutation(len(places))[:n_places])]] = True
    return replace(batch, sites=sites)
