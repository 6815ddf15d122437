"""The parts of tasks: one test part for all checkpoints and seeds, and what each seed learns from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isotrace.base.errors import InputError
from isotrace.base.identity import identity
from isotrace.base.progress import Progress, silent
from isotrace.datasets.inputs import read_inputs, rejects_frame
from isotrace.datasets.reading.cells import column_of, is_missing, plain
from isotrace.datasets.replicates import cleaned
from isotrace.domains.domain import Domain, is_valid
from isotrace.stats.splits import deal
from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.tasks import TaskTable, read_tasks
from isotrace.transfer.measuring.lists import Checkpoint, TaskSpec
from isotrace.transfer.measuring.settings import MeasureSettings

PART, TEST = "isotrace part", 0.2
"""The column that names parts, and the share of the test part where no other does."""
SPARE, ENOUGH = 1.5, 5
"""Rows drawn for each that is learned from: some cannot be read, or repeat others; and for each that is used, of a
table whose parts are dealt out."""

NO_REJECTS = rejects_frame([])
METRIC = {"regression": "r2", "class": "auroc", "classes": "macro_auroc"}
"""By kind, that which checkpoints are ranked by."""


@dataclass(frozen=True, eq=False)
class Parts:
    """`tables`: (tokenizer, task, seed) → the task as subjects with that tokenizer read it; rows that one of them
    cannot read are in none. `width`: the smallest of the checkpoints' states."""

    tables: dict[tuple[str, str, int], TaskTable]
    width: int

    @classmethod
    def of(
        cls, checkpoints: Sequence[Checkpoint], tasks: Sequence[TaskSpec], load: Callable[[Checkpoint], Subject],
        domain: Domain, settings: MeasureSettings, progress: Progress = silent,
    ) -> "Parts":  # fmt: skip
        """Raises InputError for a task of atoms or residues, and as `read_tasks`."""
        readers, widths = dict[str, Subject](), list[int]()
        for checkpoint in progress(checkpoints, "reading checkpoints"):
            subject = load(checkpoint)
            readers.setdefault(tokenizer_key(subject), subject)
            widths.append(subject.d_model)
        tables: dict[tuple[str, str, int], TaskTable] = {}
        for task in progress(tasks, "reading tasks"):
            rows = with_parts(labelled_rows(task), task, domain, settings)
            for seed in settings.seeds:
                some = drawn(rows, settings, seed)

                def of(subject: Subject, limit: int | None, some: pl.DataFrame, task=task, seed=seed) -> TaskTable:
                    given: dict[str, Any] = {"split": PART, "kind": task.kind, "seed": seed, "limit": limit}
                    try:
                        return read_tasks(subject, domain, some, NO_REJECTS, [task.label], **given)
                    except InputError as error:
                        raise InputError(f"task {task.name}: {error}") from None

                if len(readers) > 1:
                    whole = [of(subject, None, some) for subject in readers.values()]
                    shared = set.intersection(*({e.index for e in table.examples} for table in whole))
                    some = some.filter(pl.col("index").is_in([*shared]))
                for key, subject in readers.items():
                    table = of(subject, settings.n_train, some)
                    if table.by_token:
                        raise InputError(f"task {task.name}: checkpoints are compared on labels of whole sequences.")
                    tables[key, task.name, seed] = table
        return cls(tables, min(widths))

    def table(self, subject: Subject | None, task: TaskSpec, seed: int) -> TaskTable:
        """As `subject` reads it; None: whoever does."""
        if subject is None:
            return next(table for (_, name, own), table in self.tables.items() if (name, own) == (task.name, seed))
        return self.tables[tokenizer_key(subject), task.name, seed]

    def test(self, task: TaskSpec) -> tuple[np.ndarray, tuple[str, ...], str]:
        """(labels, groups, metric) of the test part."""
        table = next(table for (_, name, _), table in self.tables.items() if name == task.name)
        rows = table.rows("test")
        return table.y[rows, 0], tuple(table.groups[rows].tolist()), METRIC[kind_of(table)]


def kind_of(table: TaskTable) -> str:
    """`regression`, `class`, or `classes` where there are more than two."""
    prop = table.properties[0]
    return "classes" if prop.kind == "class" and prop.n_outputs > 1 else prop.kind


def tokenizer_key(subject: Subject) -> str:
    return identity([subject.tokenizer.get_vocab(), subject.max_tokens, type(subject.tokenizer).__name__])


def labelled_rows(task: TaskSpec) -> pl.DataFrame:
    """Rows of the task's table that have a label."""
    rows, _ = read_inputs(str(task.file))
    label = column_of(rows, task.label, "label")
    cells = ("" if cell is None else str(plain(cell)).strip() for cell in rows[label].to_list())  # 0 is a label
    return rows.filter(pl.Series([not is_missing(cell) for cell in cells]))


def with_parts(rows: pl.DataFrame, task: TaskSpec, domain: Domain, settings: MeasureSettings) -> pl.DataFrame:
    """With the column PART: as `task.split` names it, or a fifth of the sequences, in whole groups, is the test part.
    Of large tables so many rows are taken as can be needed, and no more."""
    if task.split is not None:
        return rows.with_columns(rows[column_of(rows, task.split, "split")].cast(pl.String).alias(PART))
    order = np.random.default_rng((settings.seed, 24)).permutation(rows.height)
    some = rows[np.sort(order[: ENOUGH * (settings.n_train + settings.n_test)])]
    some = some.filter(pl.Series([is_valid(domain, text) for text in some["sequence"].to_list()]))
    # one row a thing, before parts are dealt out: a salt and its base are one
    some = cleaned(some, NO_REJECTS, domain, label=task.label, split=None, salts="strip", kind=task.kind).rows
    parts = deal(domain.groups(some["sequence"].to_list()), (1 - TEST, TEST), settings.seed)
    return some.with_columns(pl.Series(PART, ["train" if part == 0 else "test" for part in parts]))


def drawn(rows: pl.DataFrame, settings: MeasureSettings, seed: int) -> pl.DataFrame:
    """At most `n_test` rows of the test part, the same for every seed, and enough others to learn from."""
    test = rows[PART].str.to_lowercase() == "test"
    found = []
    for own, n, by in (
        (rows.filter(test), settings.n_test, settings.seed), (rows.filter(~test), int(SPARE * settings.n_train), seed)
    ):  # fmt: skip
        order = np.random.default_rng((by, 23)).permutation(own.height)[:n]
        found.append(own[np.sort(order)])
    return pl.concat(found)
