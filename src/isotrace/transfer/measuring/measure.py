"""Every checkpoint adapted to every task, seed by seed, with what predictors said of it before: all that a matrix of
outcomes, its ceilings and the judging of predictors are made of. A killed measurement goes on behind what it has kept.

The test part of a task is the same for all checkpoints and seeds; a seed draws the labels that are learned from. Rows
that the tokeniser of one checkpoint cannot read are left out for all.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np

from isotrace.base.identity import identity
from isotrace.base.progress import Progress, silent
from isotrace.base.work import Memo, Work
from isotrace.datasets.tasks import Example
from isotrace.domains.domain import Domain
from isotrace.stats.bootstrap import interval
from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.method import adapt, n_weights
from isotrace.transfer.adapting.scoring import HeldOut, forest_outputs
from isotrace.transfer.adapting.tasks import TaskTable
from isotrace.transfer.judging.abstention import FOREST
from isotrace.transfer.judging.outcomes import OutcomeRow, OutcomeTable
from isotrace.transfer.measuring.features import Features, checked
from isotrace.transfer.measuring.lists import Checkpoint, TaskSpec
from isotrace.transfer.measuring.parts import Parts, kind_of
from isotrace.transfer.measuring.settings import MeasureSettings
from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import PREDICTORS, Row

CACHE = 1
"""Raised when code changes what a measurement has kept."""
GROUPS = "groups"
"""What a split is called that deals out whole groups of relatives."""
Load = Callable[[Checkpoint], Subject]


@dataclass(frozen=True, eq=False)
class Measured:
    """Of a task's test part: `outputs [checkpoints, seeds, rows, outputs]`, in the order of the checkpoints,
    `y [rows]`, `groups`, and the `metric` it is ranked by. `scores`: (checkpoint, seed) → what predictors said."""

    task: str
    outputs: np.ndarray
    y: np.ndarray
    groups: tuple[str, ...]
    metric: str
    scores: dict[tuple[str, int], tuple[Row, ...]]


@dataclass(frozen=True, eq=False)
class Measurement:
    """What is to be measured; predictions and scores of predictors are kept in `work`. `corpus`: sequences like those
    of the pretraining, for the predictors that ask for some."""

    checkpoints: Sequence[Checkpoint]
    tasks: Sequence[TaskSpec]
    load: Load
    domain: Domain
    settings: MeasureSettings
    work: Work
    corpus: Sequence[str]
    parts: Parts

    @classmethod
    def of(
        cls, checkpoints: Sequence[Checkpoint], tasks: Sequence[TaskSpec], load: Load, domain: Domain,
        settings: MeasureSettings, work: Work, *, corpus: Sequence[str] = (), progress: Progress = silent,
    ) -> "Measurement":  # fmt: skip
        """Raises InputError and SubjectError as `Parts` and `checked` do."""
        checked(checkpoints, corpus, settings)
        parts = Parts.of(checkpoints, tasks, load, domain, settings, progress)
        return cls(checkpoints, tasks, load, domain, settings, work, corpus, parts)

    def measured(self, outcomes: OutcomeTable, progress: Progress = silent) -> list[Measured]:
        """Rows go to `outcomes`, those of a forest on fingerprints among them. Raises as `checkpoint` does."""
        every = progress(self.checkpoints, "checkpoints")
        found = [(one.name, self.checkpoint(one, outcomes, progress)) for one in every]
        memo = Memo(self.work, CACHE, self.settings.identity)
        for task in progress(self.tasks, "forests"):
            _forest(self.parts, task, self.domain, self.settings, outcomes, memo)
        seeds = self.settings.seeds
        return [
            Measured(
                task.name, np.asarray([[own[task.name, seed][0] for seed in seeds] for _, own in found]),
                *self.parts.test(task), {(name, s): own[task.name, s][1] for name, own in found for s in seeds},
            )
            for task in self.tasks
        ]  # fmt: skip

    def checkpoint(
        self, checkpoint: Checkpoint, outcomes: OutcomeTable | None = None, progress: Progress = silent
    ) -> dict[tuple[str, int], tuple[np.ndarray, tuple[Row, ...]]]:
        """(task, seed) → (predictions `[rows, outputs]` of the test part, scores of predictors). Raises InputError and
        SubjectError as `adapt` does, DictionaryError as `Features`."""
        subject, settings, found = self.load(checkpoint), self.settings, {}
        memo = Memo(self.work, CACHE, subject, settings.identity)
        features = Features(checkpoint, self.checkpoints, self.load, subject, self.corpus, settings)
        for task in progress(self.tasks, f"tasks of {checkpoint.name}"):
            tables = [self.parts.table(subject, task, seed) for seed in settings.seeds]
            features.expect(example.text for table in tables for example in learned(table))
            for seed, table in zip(settings.seeds, tables, strict=True):
                key = f"{task.name} {seed} {identity([e.text for e in table.examples])}"
                started = time.monotonic()
                made = memo(f"outputs {key}", partial(_adapted, subject, self.domain, table, settings, seed))
                seconds = memo.plain(f"seconds {key}", partial(_since, started))
                if outcomes is not None:
                    _store(outcomes, checkpoint, subject, task, table, settings, seed, made, seconds)
                given = cache(partial(_evidence, checkpoint, subject, table, seed, self.corpus, self.parts.width))
                rows = (
                    memo.plain(f"score {n} {self._depends(n, checkpoint, key)}{features.key(n)}",
                               partial(_scored, n, given, features))
                    for n in settings.predictors
                )  # fmt: skip
                found[task.name, seed] = made, tuple(Row(**row) for row in rows)
        return found

    def _depends(self, predictor: str, checkpoint: Checkpoint, task: str) -> str:
        """What a score depends on, beside the checkpoint and its features."""
        asked = PREDICTORS[predictor]
        corpus = identity([*self.corpus] if "corpus" in asked.needs else [])
        if not asked.of_task:
            return f"{checkpoint.tokens_seen} {corpus}"
        return f"{task} {checkpoint.tokens_seen} {corpus} {self.parts.width}"


def _since(started: float) -> float:
    return time.monotonic() - started


def _adapted(subject: Subject, domain: Domain, table: TaskTable, settings: MeasureSettings, seed: int) -> np.ndarray:
    """`[test rows, outputs]`."""
    made = adapt(subject, domain, table, settings.method, replace(settings.adapting, seed=seed))
    return made.readout.outputs(made.subject, [table.examples[i] for i in table.members("test")])


def learned(table: TaskTable) -> list[Example]:
    """What labels are learned from."""
    return [table.examples[i] for i in table.places[table.rows("train", "valid")]]


def _evidence(
    checkpoint: Checkpoint, subject: Subject, table: TaskTable, seed: int, corpus: Sequence[str], width: int
) -> Evidence:
    """What predictors are given: the labels that are learned from alone."""
    rows, texts = table.rows("train", "valid"), [example.text for example in learned(table)]
    kind = "regression" if table.properties[0].kind == "regression" else "classification"
    return Evidence.of(
        subject, texts, table.y[rows, 0], kind, seed=seed, groups=table.groups[rows].tolist(),
        tokens_seen=checkpoint.tokens_seen, corpus=tuple(corpus), width=width,
    )  # fmt: skip


def _scored(name: str, given: Callable[[], Evidence], features: Features) -> dict[str, Any]:
    return asdict(PREDICTORS[name].row(features.added(given()) if features.asked_by(name) else given()))


def _forest(
    parts: Parts, task: TaskSpec, domain: Domain, settings: MeasureSettings, outcomes: OutcomeTable, memo: Memo
) -> None:
    nobody = Checkpoint(FOREST, FOREST, FOREST, 0.0)
    for seed in settings.seeds:
        table = parts.table(None, task, seed)
        key = f"forest {task.name} {seed} {identity([e.text for e in table.examples])}"
        started = time.monotonic()
        made = memo(key, partial(forest_outputs, table, domain, seed))
        seconds = time.monotonic() - started
        _store(outcomes, nobody, None, task, table, replace(settings, method=FOREST), seed, made, seconds)


def _store(
    outcomes: OutcomeTable, checkpoint: Checkpoint, subject: Subject | None, task: TaskSpec, table: TaskTable,
    settings: MeasureSettings, seed: int, made: np.ndarray, seconds: float,
) -> None:  # fmt: skip
    """A row for every metric."""
    prop, n_train = table.properties[0], len(table.rows("train", "valid"))
    tokens = sum(len(example.ids) for example in table.examples)
    # a probe reads every sequence once, at 2 operations a weight and token; how often training reads one is not known
    n = 0 if subject is None else n_weights(subject.model)
    flops = 2.0 * n * tokens if settings.method in ("probe", "probe_all") else float("nan")

    def rows() -> list[OutcomeRow]:
        draws = HeldOut.of(table, settings.n_bootstrap, settings.seed).draws([made], 0)[prop.label]
        return [
            OutcomeRow(
                checkpoint.name, checkpoint.family, n, checkpoint.tokens_seen, checkpoint.pretrain_loss, task.name,
                kind_of(table), settings.n_train, task.split or GROUPS, settings.method, seed, metric, float(values[0]),
                *interval(values[1:]), seconds, 0.0 if subject is None else flops,
            )
            for metric, values in draws.items()
        ]  # fmt: skip

    content = identity([e.text for e in table.examples])
    outcomes.computed([CACHE, checkpoint, subject, task.name, content, n_train, settings.identity, seed], rows)
