"""A method beside what it must be better than, all on the same parts: a start from random weights, the probe, the probe
of an untrained copy, a forest on fingerprints."""

import time
from dataclasses import dataclass, replace

import numpy as np

from isotrace.annotation.nulls.sources import untrained_subject
from isotrace.base.progress import Progress, silent
from isotrace.base.settings import child_seed
from isotrace.base.work import Work
from isotrace.domains.domain import Domain
from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.method import Adapted, adapt
from isotrace.transfer.adapting.scoring import Draws, HeldOut, forest_outputs
from isotrace.transfer.adapting.settings import AdaptSettings
from isotrace.transfer.adapting.tasks import TaskTable
from isotrace.transfer.adapting.training import Point

DRAWN = ("lora", "full", "scratch", "untrained")
"""What depends on the seed; the others are computed once."""


@dataclass(frozen=True, eq=False)
class Entry:
    """`outputs`: `[test rows, outputs]` of each seed. `curves`: the learning curve of each. `seconds`: of all seeds
    together, what was taken up again not counted. `adapted`: of the first seed; None for a forest."""

    outputs: tuple[np.ndarray, ...]
    curves: tuple[tuple[Point, ...], ...]
    seconds: float
    adapted: Adapted | None


@dataclass(frozen=True, eq=False)
class Compared:
    """`entries`: the method first, then the baselines; `draws` of each, paired over groups."""

    method: str
    entries: dict[str, Entry]
    draws: dict[str, Draws]
    part: HeldOut

    @property
    def adapted(self) -> Adapted:
        found = self.entries[self.method].adapted
        assert found is not None
        return found


def compared(
    subject: Subject, domain: Domain, table: TaskTable, method: str, settings: AdaptSettings, *, n_seeds: int = 1,
    baselines: tuple[str, ...] = ("scratch", "probe", "untrained", "forest"), n_bootstrap: int = 1_000,
    work: Work | None = None, progress: Progress = silent,
) -> Compared:  # fmt: skip
    """Raises as `adapt` does. Seeds change the training, not the parts."""
    names = [method, *(name for name in baselines if name != method and not (name == "forest" and table.by_token))]
    seeds = [child_seed(settings.seed, i) if i else settings.seed for i in range(n_seeds)]
    examples = [table.examples[i] for i in table.members("test")]
    part = HeldOut.of(table, n_bootstrap, settings.seed)

    def one(name: str) -> Entry:
        started, found, curves, first = time.monotonic(), [], [], None
        for seed in seeds if name in DRAWN else seeds[:1]:
            if name == "forest":
                found.append(forest_outputs(table, domain, seed))
                continue
            whose = untrained_subject(subject, seed) if name == "untrained" else subject
            how = "probe" if name == "untrained" else name
            given = replace(settings, seed=seed)
            if name == "scratch" and method not in ("full", "scratch"):
                given = replace(given, learning_rate=None)  # what was given is that of another method
            adapted = adapt(whose, domain, table, how, given, work=work, progress=progress)
            found.append(adapted.readout.outputs(adapted.subject, examples))
            curves.append(adapted.points)
            first = first or adapted
        return Entry(tuple(found), tuple(curves), time.monotonic() - started, first)

    entries = {name: one(name) for name in names}
    draws = {name: part.draws(entry.outputs, who) for who, (name, entry) in enumerate(entries.items())}
    return Compared(method, entries, draws, part)
