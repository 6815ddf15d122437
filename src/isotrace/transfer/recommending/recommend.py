"""Checkpoints beside the fingerprint forest on one property, and which of them to take, or that it cannot be told.

1. rows      those that every checkpoint can read
2. folds     whole groups (scaffolds, clusters) are held out, the same for all
3. predict   a probe of each checkpoint's final hidden state, its penalty chosen inside, the probe of an untrained copy,
             and a forest on fingerprints, of rows that none of them was fitted on
4. decide    see `judging.abstention`
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isotrace.annotation.nulls.sources import untrained_subject
from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, silent
from isotrace.datasets.tasks import Labelled
from isotrace.domains.domain import Domain
from isotrace.probing.crossed import crossed, forest, metrics_of
from isotrace.probing.folds import Folds, folds_of
from isotrace.probing.linear import Task
from isotrace.probing.probe import LEAST
from isotrace.probing.states import pooled_states
from isotrace.stats.bootstrap import group_weights
from isotrace.stats.metrics import METRICS
from isotrace.subjects.subject import Subject
from isotrace.transfer.judging.abstention import FOREST, Decision, decide, similarity_to_corpus


@dataclass(frozen=True, eq=False)
class Recommendation:
    """`outputs[name] [n, outputs]` of rows held out, by checkpoint and `forest`; `untrained` likewise, of the
    checkpoints alone. `y`, `groups [n]`. `draws [1 + n_draws, n]`: weights of rows, the first all ones. `seconds`: of
    reading and fitting. `unread`: (row, text, reason) of those that a checkpoint cannot read."""

    decision: Decision
    data: Labelled
    metric: str
    outputs: dict[str, np.ndarray]
    untrained: dict[str, np.ndarray]
    y: np.ndarray
    groups: np.ndarray
    draws: np.ndarray
    seconds: dict[str, float]
    n_folds: int
    unread: tuple[tuple[int, str, str], ...]

    def scores(self, outputs: np.ndarray) -> np.ndarray:
        """`[1 + n_draws]`."""
        return METRICS[self.metric](outputs, self.y, self.draws)


def recommend(
    subjects: Mapping[str, Subject], domain: Domain, tables: Mapping[str, Labelled], *, corpus: Sequence[str] = (),
    n_folds: int = 5, n_draws: int = 1_000, seed: int = 0, progress: Progress = silent,
) -> Recommendation:  # fmt: skip
    """`tables`: the labels as each of `subjects` reads them. `corpus`: sequences like those that the checkpoints were
    trained on; none: whether the property's are among them is not known. Chosen by R² of numbers, AUROC of classes.

    Raises InputError for fewer than LEAST rows that all can read, labels that are all equal, labels of atoms or
    residues, and as `folds_of` does."""
    data, unread = shared_rows(tables)
    if data.kind not in ("class", "regression"):
        raise InputError(f"checkpoints are compared on classes or numbers of whole sequences, not on {data.kind}.")
    texts, groups = [e.text for e in data.examples], np.asarray([e.group for e in data.examples])
    y = np.asarray([e.y for e in data.examples], np.float64)
    if len(y) < LEAST:
        raise InputError(f"{len(y)} rows with a label that every checkpoint reads: give at least {LEAST}.")
    if len(np.unique(y)) < 2:
        what = data.classes[0] if data.classes else f"{y[0]:g}"
        raise InputError(f"all rows have the label {what}: there is nothing to predict.")
    task: Task = "regression" if data.kind == "regression" else "classification"
    metric = "r2" if task == "regression" else metrics_of(task, data.classes)[0]
    folds = folds_of(task, y, groups, data.classes, n_folds, seed)
    outputs, untrained, seconds = dict[str, np.ndarray](), dict[str, np.ndarray](), dict[str, float]()
    for name, subject in progress([*subjects.items()], "checkpoints"):
        own = tables[name].examples
        read = {e.index: e for e in own}
        given = replace(data, examples=tuple(read[e.index] for e in data.examples))
        started = time.monotonic()
        outputs[name] = _probed(subject, given, y, task, folds)
        seconds[name] = time.monotonic() - started
        untrained[name] = _probed(untrained_subject(subject, seed), given, y, task, folds)
    started = time.monotonic()
    trees = forest(domain.fingerprints(texts), y, task, folds, seed)
    seconds[FOREST] = time.monotonic() - started
    near = similarity_to_corpus(domain, texts, corpus) if corpus else None
    decision = decide(outputs, trees, y, groups.tolist(), metric, near, seed=seed, n_draws=n_draws)
    draws = group_weights(groups.tolist(), n_draws, (seed, 21))
    return Recommendation(
        decision, data, metric, outputs | {FOREST: trees}, untrained, y, groups, draws, seconds, len(folds), unread
    )


def shared_rows(tables: Mapping[str, Labelled]) -> tuple[Labelled, tuple[tuple[int, str, str], ...]]:
    """(the first table with the rows that are in all, (row, text, reason) of the others)."""
    first = next(iter(tables.values()))
    known = {name: {e.index for e in table.examples} for name, table in tables.items()}
    every = set[int].intersection(*known.values())
    rejects = [(name, reject) for name, table in tables.items() for reject in table.rejects]
    of_all = {*first.rejects}.intersection(*(table.rejects for table in tables.values()))
    why = {row: (text, why if (row, text, why) in of_all else f"{name}: {why}") for name, (row, text, why) in rejects}
    examples = tuple(e for e in first.examples if e.index in every)
    return replace(first, examples=examples), tuple((row, *why[row]) for row in sorted({*why} - every))


def _probed(subject: Subject, data: Labelled, y: np.ndarray, task: Task, folds: Folds) -> np.ndarray:
    states = pooled_states(subject, data.examples, (subject.n_layers,), "mean")
    return crossed(states, y, task, folds, data.classes).outputs
