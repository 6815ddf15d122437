"""What a trial is made of, each thing computed when it is asked for: the parts of the data, the edit, strengths and
designs, which are kept, so that others can make them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, silent
from isotrace.base.work import Memo, Work
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
from isotrace.steering.trials.arm import Arm, Strengths, Workshop
from isotrace.steering.trials.judge import Exact, Judge
from isotrace.steering.trials.safety import checked, development_starts
from isotrace.steering.trials.settings import PLACES, TrialSettings
from isotrace.steering.trials.twins import Null, covariances, grid_of, name_of
from isotrace.subjects.subject import Batch, Subject

SHARES = (0.5, 0.3, 0.2)
"""Of the groups: for the direction, for the judge and the dose, for what is told."""
CALIBRATION = 12
"""Sequences that doses are measured on."""
CACHE = 2
"""Raised when code changes what a killed trial has kept."""


@dataclass(frozen=True)
class Part:
    """`told`, `development`: what is written there without an edit. `dose`: the edit at one, written on both. `twin`:
    number `number` of `null`, at `doses`, met on `grid`."""

    kind: Literal["told", "development", "dose", "twin"]
    doses: tuple[float, ...] = ()
    null: Null = "random"
    number: int = 0
    grid: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False)
class Experiment:
    """As `trial` is given them."""

    subject: Subject
    contrast: Contrast
    settings: TrialSettings
    components: Components | None
    starts: tuple[str, ...]
    exact: Exact | None
    reader: Subject | None
    memo: Memo

    @classmethod
    def of(
        cls, subject: Subject, contrast: Contrast, settings: TrialSettings, *, components: Components | None = None,
        starts: Sequence[str] = (), exact: Exact | None = None, reader: Subject | None = None,
        work: Work | None = None,
    ) -> "Experiment":  # fmt: skip
        parts = components if components is None else encoded(components, {})
        memo = Memo(work, CACHE, subject, contrast, settings, parts, [*starts], reader)
        return cls(subject, contrast, settings, components, tuple(starts), exact, reader, memo)

    @cached_property
    def domain(self) -> Domain:
        return domain_of(str(self.subject.files.domain))

    @cached_property
    def parts(self) -> tuple[Contrast, ...]:
        """(fitting, judging, told)."""
        return _parts(self.contrast, self.settings.seed)

    @cached_property
    def chosen(self) -> tuple[str, ...]:
        """Starts that are told."""
        told = self.parts[2]
        return self.starts or tuple(told.examples[i].text for i in told.negative[: self.settings.n_starts])

    @cached_property
    def others(self) -> tuple[str, ...]:
        """Starts for development."""
        n = self.settings.n_development
        return development_starts(self.subject, self.domain, self.parts[1], self.chosen, n)

    @cached_property
    def judge(self) -> Judge | Exact:
        _, judging, told = self.parts
        return self.exact or Judge.fitted(self.domain, judging, told, self.settings.seed)

    @cached_property
    def held(self) -> Contrast:
        return held_fixed(self.parts[0], self.settings)

    def found(self, progress: Progress = silent) -> Edits:
        """The edit, fitted once."""
        if not self._edits:
            self._edits.append(self._fitted(self.held, progress))
        return self._edits[0]

    @cached_property
    def _edits(self) -> list[Edits]:
        return []

    def _fitted(self, labels: Contrast, progress: Progress) -> Edits:
        settings = self.settings
        edits = DIRECTIONS[settings.method].fit(
            self.subject, labels, components=self.components, layers=settings.layers, progress=progress,
            **settings.more,
        )  # fmt: skip
        return placed(edits, self.subject, settings.where)

    @cached_property
    def asked(self) -> Questions:
        settings, subject = self.settings, self.subject
        return Questions.of(subject, [calibration(subject, self.parts[1], settings.seed, settings.n_places)])

    @cached_property
    def workshop(self) -> Workshop:
        floor = usual_floor(self.domain, [e.text for e in self.parts[1].examples])
        return Workshop(self.subject, self.domain, self.judge, self.chosen, self.settings, floor, self.memo)

    @cached_property
    def beside(self) -> Workshop:
        """For development."""
        return replace(self.workshop, starts=self.others)

    def drawn(self, number: int, null: Null) -> Edits:
        """Twin number `number`. Raises as the method, for labels that mean nothing."""
        seed = (self.settings.seed + 1) * 10_000 + number
        if null == "shuffled":
            return self._fitted(held_fixed(self.parts[0].shuffled(seed), self.settings), silent)
        return self.found().twin(seed, self._within if null == "covariance" else None)

    @cached_property
    def _within(self) -> list[Tensor]:
        return covariances(self.subject, self.held, self.found())

    def doses(self) -> list[Part]:
        every = [Part("dose", (dose,)) for dose in sorted({*self.settings.doses}, reverse=True)]
        return [Part("development"), *every, Part("told")]

    def twins(self, nulls: Sequence[Null], like: Sequence[Arm]) -> list[Part]:
        doses, grid = tuple(arm.dose for arm in like), tuple(grid_of(like))
        return [
            Part("twin", doses, null, i, grid) for null in nulls for i in range(self.settings.n_twins if grid else 0)
        ]

    def do(self, part: Part) -> None:
        """No two parts of `doses`, and none of `twins`, keep the same thing."""
        if part.kind == "told":
            self.workshop.designs("told 0", None)
        elif part.kind == "development":
            checked(self.beside, 0.0, None, self.reader)
        elif part.kind == "dose":
            dose = part.doses[0]
            dosed = Strengths("edit", self.found(), self.asked, self.memo).reach(dose)
            if not isinstance(dosed, str):
                self.workshop.designs(f"told {dose}", dosed)
                checked(self.beside, dose, dosed, self.reader)
        else:
            name = name_of(part.null, part.number)
            strengths = Strengths(name, self.drawn(part.number, part.null), self.asked, self.memo)
            for dose in part.doses:
                dosed = strengths.reach(dose, part.grid)
                if not isinstance(dosed, str):
                    self.workshop.designs(f"{name} {dose}", dosed)


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
