"""Arms of a trial: what comes out from its starts under one edit, and what the judge says of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from isotrace.base.errors import InputError
from isotrace.base.work import Memo
from isotrace.domains.domain import Domain
from isotrace.interventions import Plan
from isotrace.steering.decoding.decoder import DECODERS
from isotrace.steering.decoding.run import Design, Designs
from isotrace.steering.dose import GRID, Dose, degenerate_share
from isotrace.steering.edits import Calibrated, Edits
from isotrace.steering.questions import Questions
from isotrace.steering.trials.judge import Exact, Judge
from isotrace.steering.trials.settings import TrialSettings
from isotrace.subjects.subject import Subject

GENERATORS = {"masked": "gibbs"}
"""Objective → generator where none is named; `sample` for the others."""


@dataclass(frozen=True, eq=False)
class Arm:
    """What came out under one edit. `dose` asked for, 0 unsteered; `reached`, None where it was not, and `why`.
    `values`: what the judge says of every design, NaN of one that is not valid. `effects [starts]`: the mean over a
    start's valid designs less that of its unsteered ones, NaN where either has none. `first [starts]`: the same of the
    designs after the first round, all NaN where the generator does not show them. `degenerate`: share."""

    dose: float
    reached: Calibrated | None = None
    why: str | None = None
    designs: Designs | None = None
    values: np.ndarray = field(default_factory=lambda: np.zeros(0))
    effects: np.ndarray = field(default_factory=lambda: np.zeros(0))
    first: np.ndarray = field(default_factory=lambda: np.zeros(0))
    degenerate: float = float("nan")

    @property
    def rows(self) -> tuple[Design, ...]:
        """None where the dose was not reached."""
        return () if self.designs is None else self.designs.rows

    @property
    def known(self) -> np.ndarray:
        """Effects of the starts that have one."""
        return self.effects[np.isfinite(self.effects)]

    @property
    def effect(self) -> float:
        return float(self.known.mean()) if len(self.known) else float("nan")


@dataclass(frozen=True, eq=False)
class Workshop:
    """What arms are made with. `floor`: see `usual_floor`. `memo` keeps designs, so that a killed trial goes on; what
    the judge says is asked again, since it costs little."""

    subject: Subject
    domain: Domain
    judge: Judge | Exact
    starts: tuple[str, ...]
    settings: TrialSettings
    floor: float | None
    memo: Memo

    def arm(self, name: str, dose: float, edits: Edits | None, plain: Arm | None = None) -> Arm:
        """`name`: which it is, of all in the trial."""
        designs = self.designs(name, edits)
        valid = [row for row in designs.rows if row.valid]
        values = judged(self.judge, designs.rows)
        means, first = start_means(designs.rows, values, len(self.starts)), self._first(designs)
        base, before = means, first
        if plain is not None and plain.designs is not None:
            base, before = start_means(plain.rows, plain.values, len(self.starts)), self._first(plain.designs)
        share, _ = degenerate_share(
            self.domain, [row.sequence for row in valid], [self._from(row.start) for row in valid], self.floor
        )
        reached = None if edits is None else edits.dose
        return Arm(dose, reached, None, designs, values, means - base, first - before, share)

    def designs(self, name: str, edits: Edits | None) -> Designs:
        """Of the arm `name`, kept."""
        return _read(self.memo.plain(f"designs {name}", lambda: _written(self._designs(edits))))

    def _first(self, designs: Designs) -> np.ndarray:
        return start_means(designs.first, judged(self.judge, designs.first), len(self.starts))

    def rewritten(self, texts: Sequence[str], plan: Plan) -> dict[int, str]:
        """One design of each of `texts`, by row, of as many tokens where the generator can keep their number; those
        that it cannot use are left out. Random numbers of the empty plan are others than those of the rest. Raises
        InputError where it can use none."""
        kind, seed = DECODERS[self._generator], self.settings.seed + (not len(plan))
        kept: dict[str, Any] = {"indels": 0.0} if "indels" in {f.name for f in fields(kind)} else {}
        return {row.start: row.sequence for row in kind(n=1, seed=seed, **kept)(self.subject, texts, plan).rows}

    @property
    def _generator(self) -> str:
        return self.settings.generator or GENERATORS.get(self.subject.objective, "sample")

    def _designs(self, edits: Edits | None) -> Designs:
        generator = DECODERS[self._generator](n=self.settings.n_designs, seed=self.settings.seed)
        plans: dict[int, Plan] = {}  # rounds of an edit that is on in all are one plan
        edit = Plan() if edits is None else lambda r: plans.setdefault(r, edits.plan(round=r))
        return generator(self.subject, self.starts, edit)

    def _from(self, row: int) -> str | None:
        """The start, where designs are changes of it."""
        return self.starts[row] if self.subject.objective != "causal" else None


class Strengths:
    """Of one edit: which α has a dose. Points that were measured for one dose serve the others."""

    def __init__(self, name: str, edits: Edits, asked: Questions, memo: Memo) -> None:
        self.name, self.edits, self.asked, self.memo = name, edits, asked, memo
        self._dose: Dose | None = None

    def reach(self, dose: float, grid: Sequence[float] = GRID) -> Edits | str:
        """Calibrated, or why the dose is not reached."""
        found = self.memo.plain(f"strength {self.name} {dose}", lambda: self._reach(dose, grid))
        return found if isinstance(found, str) else replace(self.edits, dose=Calibrated(**found))

    def _reach(self, dose: float, grid: Sequence[float]) -> dict[str, Any] | str:
        self._dose = self._dose or Dose(self.edits, self.asked)
        try:
            return asdict(self._dose.reach(dose, grid))
        except InputError as error:
            return str(error)


def judged(judge: Judge | Exact, rows: Sequence[Design]) -> np.ndarray:
    """What the judge says `[rows]`, NaN of one that is not valid."""
    said = iter(judge([row.sequence for row in rows if row.valid]).tolist())
    return np.asarray([next(said) if row.valid else np.nan for row in rows])


def start_means(rows: Sequence[Design], values: np.ndarray, n: int) -> np.ndarray:
    """Mean of `values [rows]` over each of `n` starts, those that are NaN left out; NaN where a start has none."""
    at, found = np.asarray([row.start for row in rows]), np.full(n, np.nan)
    for start in range(n):
        own = values[(at == start) & np.isfinite(values)]
        if len(own):
            found[start] = own.mean()
    return found


def _written(designs: Designs) -> dict[str, Any]:
    return asdict(designs)


def _read(found: dict[str, Any]) -> Designs:
    told: dict[str, Any] = found | {"rejects": tuple(map(tuple, found["rejects"]))}
    told |= {name: tuple(Design(**row) for row in found[name]) for name in ("rows", "first")}
    return Designs(**told)
