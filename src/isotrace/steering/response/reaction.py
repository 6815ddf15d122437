"""What a subject makes of an edit at one dose: does it show, does it last, is it set back. Each number stands beside
that of a random twin of the same dose; how easily an edit is noticed says how far off the data it lies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.interventions import Plan
from isotrace.steering.edits import Edits
from isotrace.steering.questions import Questions
from isotrace.steering.response.detection import DETECTORS, detections, seen
from isotrace.steering.response.resistance import Reversals, persistence, resistance, reversals
from isotrace.subjects.subject import Batch, Subject

NAN = float("nan")
NO_TWIN = "there is no random twin of this dose"


@dataclass(frozen=True)
class Beside:
    """A share, of the edit and of its twin; NaN where it is not known, and `why`."""

    own: float
    twin: float
    why: str | None = None

    @classmethod
    def unknown(cls, why: str) -> Self:
        return cls(NAN, NAN, why)


@dataclass(frozen=True)
class Reaction:
    """`noticed`: detector → share of edited runs that it finds at 5 % false alarms, of `sequences` that fitted nothing,
    see `detection`. `left`: share of the added direction that is there behind the last layer; `reversed`: share of the
    sites written under the edit that later unsteered rounds set back, and `excess`, the interval of how much more than
    under the twin, see `resistance`."""

    noticed: Mapping[str, Beside]
    sequences: int
    left: Beside
    reversed: Beside
    excess: tuple[float, float] = (NAN, NAN)


Rewrite = Callable[[Sequence[str], Plan], Mapping[int, str]]
"""(texts, plan) → what a generator makes of each by row, without those that it cannot use."""


def reaction(
    subject: Subject, edits: Edits, twin: Edits | None, parts: tuple[Batch, Batch] | None, asked: Questions,
    starts: Sequence[str], rewrite: Rewrite | None, seed: int = 0,
) -> Reaction:  # fmt: skip
    """`edits` and `twin` at the dose that they have. `parts`: natural sequences on which detectors are fitted and
    judged, which share none, None: there are too few. `asked`: what persistence is read on. `rewrite`: None of
    generators whose designs are no changes of `starts`, token by token."""
    both = [one for one in (edits, twin) if one is not None]
    noticed: dict[str, Beside] = dict.fromkeys(
        DETECTORS, Beside.unknown("too few sequences to set a threshold of one in twenty")
    )
    if parts is not None:
        noticed = _noticed(subject, both, *parts)
    back, excess = Beside.unknown("what it writes are no changes of its starts, token by token"), (NAN, NAN)
    if rewrite is not None:
        back, excess = _set_back(subject, both, starts, rewrite, seed)
    return Reaction(noticed, 0 if parts is None else len(parts[1].ids), _left(subject, both, asked), back, excess)


def _noticed(subject: Subject, both: Sequence[Edits], fit: Batch, held: Batch) -> dict[str, Beside]:
    look = lambda plan: (seen(subject, [fit], plan, "asked"), seen(subject, [held], plan, "asked"))  # noqa: E731
    plain = look(Plan())
    if not all(np.isfinite(part.entropy).all() for part in plain):
        return dict.fromkeys(DETECTORS, Beside.unknown("a sequence has no token that is predicted"))
    found = detections({str(i): look(one.plan()) for i, one in enumerate(both)}, plain)
    return {name: _beside([one.power for one in found if one.detector == name]) for name in DETECTORS}


def _left(subject: Subject, both: Sequence[Edits], asked: Questions) -> Beside:
    try:
        found = [persistence(subject, one, asked.batches, _alpha(one), 0, last=True) for one in both]
    except InputError as error:
        return Beside.unknown(str(error))
    if len({*found[0].layers}) == 1:
        return Beside.unknown("the edit is at the last layer")
    return _beside([float(one.own[-1]) for one in found])


def _set_back(
    subject: Subject, both: Sequence[Edits], starts: Sequence[str], rewrite: Rewrite, seed: int
) -> tuple[Beside, tuple[float, float]]:
    try:
        made = [_reversals(subject, one, starts, rewrite) for one in both]
    except InputError as error:
        return Beside.unknown(str(error)), (NAN, NAN)
    if not made[0].written.any():
        return Beside.unknown("nothing was written at the sites of a start under the edit"), (NAN, NAN)
    rates = _beside([one.rate for one in made])
    return rates, (NAN, NAN) if len(made) == 1 else resistance(made[0], made[1:], seed).interval


def _reversals(subject: Subject, edits: Edits, starts: Sequence[str], rewrite: Rewrite) -> Reversals:
    under = rewrite(starts, edits.plan())
    rows = [*under]
    later = rewrite([under[row] for row in rows], Plan())
    texts = [(starts[rows[i]], under[rows[i]], text) for i, text in later.items()]
    three = [[_ids(subject, text) for text in row] for row in texts]
    return reversals(*([row[i] for row in three] for i in range(3)))


def _ids(subject: Subject, text: str) -> Tensor:
    return torch.as_tensor(subject.tokenize([text]).ids[0]).cpu()


def _alpha(edits: Edits) -> float:
    if edits.dose is None:
        raise InputError("these edits have no dose yet: calibrate them.")
    return edits.dose.alpha


def _beside(values: Sequence[float]) -> Beside:
    return Beside(values[0], values[1]) if len(values) == 2 else Beside(values[0], NAN, NO_TWIN)
