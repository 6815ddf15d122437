"""What a subject is adapted to: sequences with the labels of one or several properties, in three parts.

A property that was not measured of a sequence is NaN there, and is left out of loss and score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, silent
from isotrace.datasets.inputs import rejects_frame
from isotrace.datasets.replicates import Salts, cleaned
from isotrace.datasets.tasks import Example, Labelled, labelled, parts_named
from isotrace.domains.domain import Domain
from isotrace.stats.splits import deal
from isotrace.subjects.subject import Subject

Kind = Literal["class", "regression", "residue"]
PARTS, SHARES, VALID = ("train", "valid", "test"), (0.8, 0.1, 0.1), 0.15
"""Parts, their shares where whole groups are dealt out, and that of `valid` of what is learned from where a column
names train and test alone."""
LEAST = 20
"""Labels to learn from: fewer allow no statement."""


@dataclass(frozen=True)
class Property:
    """One column. `classes` is empty unless `kind` is class. `columns`: its outputs among those of all properties."""

    label: str
    kind: Kind
    classes: tuple[str, ...]
    columns: slice

    @property
    def n_outputs(self) -> int:
        return self.columns.stop - self.columns.start

    @property
    def outputs(self) -> tuple[str, ...]:
        """Their names as a probe has them: the property, of two classes the second, of more all."""
        if self.kind != "class":
            return (self.label,)
        return self.classes if len(self.classes) > 2 else self.classes[1:]


@dataclass(frozen=True, eq=False)
class TaskTable:
    """`y [rows, properties]`: class index, number, or 0/1, NaN where not measured; a row is an example, of residues a
    labelled token. `places [rows]`: the example of each row. `parts [examples]`: index in PARTS. `notes`: counts of
    what was changed in reading, by property."""

    properties: tuple[Property, ...]
    examples: tuple[Example, ...]
    y: np.ndarray
    places: np.ndarray
    parts: np.ndarray
    rejects: pl.DataFrame
    notes: dict[str, dict[str, int]]

    @property
    def by_token(self) -> bool:
        return self.properties[0].kind == "residue"

    @property
    def n_outputs(self) -> int:
        return self.properties[-1].columns.stop

    @property
    def groups(self) -> np.ndarray:
        """`[rows]` names of groups of relatives."""
        return np.asarray([self.examples[i].group for i in self.places])

    def rows(self, *parts: str) -> np.ndarray:
        """int64: rows of the named parts, ascending."""
        return np.flatnonzero(np.isin(self.parts[self.places], [PARTS.index(part) for part in parts]))

    def labels(self, members: np.ndarray) -> np.ndarray:
        """`[rows of the examples, properties]`, in the order of `members`."""
        ends = np.searchsorted(self.places, np.arange(len(self.examples) + 1))
        return self.y[np.concatenate([np.arange(int(ends[i]), int(ends[i + 1])) for i in members.tolist()])]

    def members(self, *parts: str) -> np.ndarray:
        """int64: examples of the named parts, ascending."""
        return np.flatnonzero(np.isin(self.parts, [PARTS.index(part) for part in parts]))


def read_tasks(
    subject: Subject, domain: Domain, rows: pl.DataFrame, rejects: pl.DataFrame, labels: Sequence[str], *,
    kind: Kind | None = None, split: str | None = None, group: str | None = None, salts: Salts = "strip",
    limit: int | None = None, seed: int = 0, progress: Progress = silent,
) -> TaskTable:  # fmt: skip
    """`rows`, `rejects` as `read_inputs` gives them. `split`: a column that names train, valid and test, or train and
    test; left out, whole groups are dealt out. `limit`: at most so many sequences to learn from, valid among them.

    Raises InputError as `cleaned` and `labelled` do (units, commas, columns that are not there, one thing in two
    parts), for labels of atoms beside others, one class, fewer than LEAST labels, and parts without two classes."""
    if len({*labels}) < len(labels):
        raise InputError("a label is named twice: give every column once.")
    found, refused, notes = [], [], {}
    for label in labels:
        asked: dict[str, Any] = {"label": label, "split": split}
        clean = cleaned(rows, rejects, domain, **asked, salts=salts, kind=kind)
        data = labelled(
            subject, domain, clean.rows, **asked, kind=kind, group=group, mutations=None, mixed=True,
            rejects=clean.rejects, progress=lambda items, label=label: progress(items, f"reading {label}"),
        )  # fmt: skip
        if data.kind not in ("class", "regression", "residue"):
            raise InputError(f"a subject is adapted to classes, numbers or labels of residues, not {data.kind}.")
        notes[label] = {name: n for name, n in clean.counts.items() if n}
        found.append(data)
        refused += [(label, *row) for row in data.rejects]
    if any(data.kind == "residue" for data in found) and len({data.kind for data in found}) > 1:
        raise InputError("labels of atoms or residues and labels of whole sequences do not mix: adapt to one sort.")
    properties, start = [], 0
    for data in found:
        width = len(data.classes) if len(data.classes) > 2 else 1
        properties.append(Property(data.label, data.kind, data.classes, slice(start, start + width)))
        start += width
    examples, given, y = _joined(found, domain)
    whole = Labelled(found[0].kind, ", ".join(labels), (), tuple(examples), tuple(given), ())
    parts, kept = _parts(whole, split, limit, seed)
    chosen = np.flatnonzero(kept)
    table = TaskTable(
        tuple(properties), tuple(examples[i] for i in chosen), np.concatenate([y[i] for i in chosen]),
        np.repeat(np.arange(len(chosen)), [len(y[i]) for i in chosen]), parts[chosen],
        _rejects(refused, {example.index for example in examples}, len(labels)), notes,
    )  # fmt: skip
    _check(table)
    return table


def _joined(found: Sequence[Labelled], domain: Domain) -> tuple[list[Example], list[str | None], list[np.ndarray]]:
    """Examples of all properties, each thing once; the part that is named for each; y `[rows of it, properties]`."""
    places: dict[Any, int] = {}
    examples, given, y = [], [], []
    for t, data in enumerate(found):
        for example, part in zip(data.examples, data.given, strict=True):
            key = domain.same(example.text) if len(found) > 1 else example.index
            place = places.setdefault(key, len(examples))
            own = np.atleast_1d(np.asarray(example.y, dtype=float))
            if place == len(examples):
                examples.append(example)
                given.append(part)
                y.append(np.full((len(own), len(found)), np.nan))
            elif given[place] != part:
                raise InputError(
                    f"rows {examples[place].index} and {example.index} are the same {domain.name} and stand in two "
                    "parts: keep them together."
                )
            if examples[place].places != example.places:
                raise InputError(
                    f"rows {examples[place].index} and {example.index} write the same otherwise: join them."
                )
            y[place][:, t] = own
    return examples, given, y


def _parts(whole: Labelled, split: str | None, limit: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(index in PARTS of every example, which are kept)."""
    groups = np.asarray([example.group for example in whole.examples])
    if split is None:
        parts = deal(groups.tolist(), SHARES, seed).astype(np.int64)
    else:
        named = parts_named(whole, split, seed)  # which also refuses groups in two parts
        parts = np.asarray([("fit", "discover", "report").index(part) for part in named])
        if not any(str(part).lower() in ("valid", "val", "validation", "discover") for part in whole.given):
            parts = np.where(parts == 2, 2, 0)
            _deal_valid(parts, groups, seed)
    kept = np.ones(len(parts), dtype=bool)
    learned = np.flatnonzero(parts < 2)
    if limit is not None and len(learned) > limit:
        order = np.random.default_rng((seed, 6)).permutation(len(learned))
        kept[learned[order[limit:]]] = False
        parts = np.where(kept & (parts < 2), 0, parts)
        _deal_valid(parts, groups, seed, kept)
    if missing := next((name for i, name in enumerate(PARTS) if not (kept & (parts == i)).any()), None):
        raise InputError(f"the part {missing!r} is empty: give more sequences or another --split.")
    return parts, kept


def _deal_valid(parts: np.ndarray, groups: np.ndarray, seed: int, kept: np.ndarray | None = None) -> None:
    """Makes whole groups of what is learned from the part valid."""
    rows = np.flatnonzero((parts == 0) & (True if kept is None else kept))
    parts[rows] = deal(groups[rows].tolist(), (1 - VALID, VALID), seed)


def _rejects(refused: Sequence[tuple[str, int, str, str]], used: set[int], n_labels: int) -> pl.DataFrame:
    """Of several properties each with its column; a row that another property uses may lack this one."""
    found: dict[tuple[int, str, str], None] = {}
    for label, index, text, reason in refused:
        if index in used and reason.startswith("it has no label"):
            continue
        own = n_labels > 1 and reason.startswith("its label")
        found[(index, text, f"column {label!r}: {reason}" if own else reason)] = None
    return rejects_frame(sorted(found, key=lambda row: row[0]))


def _check(table: TaskTable) -> None:
    for t, prop in enumerate(table.properties):
        for part in ("train", "test"):
            values = table.y[table.rows(part), t]
            values = values[np.isfinite(values)]
            if part == "train":
                n = int(np.isfinite(table.y[table.rows("train", "valid"), t]).sum())
                if n < LEAST:
                    raise InputError(f"{n} labels of {prop.label!r} to learn from are too few: give at least {LEAST}.")
            present = np.unique(values)
            if len(present) < 2:
                what = "none" if not len(present) else prop.classes[int(present[0])] if prop.classes else present[0]
                raise InputError(
                    f"the part {part!r} has one label of {prop.label!r} only ({what}): there is nothing to tell apart."
                )
            if part == "train" and prop.kind == "class" and len(present) < len(prop.classes):
                lost = next(name for i, name in enumerate(prop.classes) if i not in present)
                raise InputError(f"no example of class {lost!r} is learned from: drop that class or split otherwise.")
