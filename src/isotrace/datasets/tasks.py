"""The labelled sequences of a task, and its three parts: fit the readout, discover the circuit, report on it.

Parts are disjoint by group (scaffold, cluster: what the domain calls close relatives). Kinds of task:

    class       a text or a few whole numbers per sequence
    regression  a number per sequence
    residue     a string of 0 and 1, one per atom or residue
    masked      the atom or residue (counted from 1) to be masked; the subject's own head predicts it
    mutation    a number per set of mutations (`A24G:K31R`, counted from 1) of the sequence, predicted by the head
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

import numpy as np
import polars as pl
import torch

from isotrace.base.errors import InputError
from isotrace.datasets.annotated import read
from isotrace.datasets.inputs import rejects_frame
from isotrace.datasets.mutations import check_numbering
from isotrace.datasets.mutations import mutations as mutations_of
from isotrace.datasets.reading.cells import are_missing, column_of, is_missing, number, plain
from isotrace.datasets.task_labels import Kind, kind_of, natural
from isotrace.domains.domain import Domain, Reading
from isotrace.stats.splits import deal
from isotrace.subjects.heads.mutations import swaps
from isotrace.subjects.subject import Batch, Subject

PARTS, SHARES = ("fit", "discover", "report"), (0.5, 0.25, 0.25)


@dataclass(frozen=True, eq=False)
class Example:
    """One sequence. `y`: class index, number, or 0/1 per entry of `places`; `places`: token positions that carry
    labels (residue), are masked (masked, mutation); `swaps`: (position, token id before, after) of mutations."""

    index: int
    text: str
    ids: np.ndarray
    group: str
    y: float | np.ndarray
    places: tuple[int, ...] = ()
    swaps: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class TaskData:
    """`parts` holds the examples of each of PARTS in the order of their length; `classes` the names of the classes,
    empty unless the kind is class."""

    kind: Kind
    label: str
    classes: tuple[str, ...]
    parts: dict[str, tuple[Example, ...]]
    rejects: pl.DataFrame

    def batches(self, part: str, tokens: int, subject: Subject) -> list[tuple[np.ndarray, Batch]]:
        """(numbers of the examples, padded batch of about `tokens` tokens where the subject is)."""
        return batches(self.parts[part], tokens, subject)


def batches(examples: Sequence[Example], tokens: int, subject: Subject) -> list[tuple[np.ndarray, Batch]]:
    """As `TaskData.batches`; `examples` should be in order of length, so that little is padding."""
    made, start = [], 0
    while start < len(examples):
        stop = start + 1
        while stop < len(examples) and len(examples[stop].ids) * (stop + 1 - start) <= tokens:
            stop += 1
        rows = examples[start:stop]
        ids = torch.full((len(rows), max(len(e.ids) for e in rows)), subject.pad_id)
        for i, example in enumerate(rows):
            ids[i, : len(example.ids)] = torch.from_numpy(example.ids)
        mask = torch.arange(ids.shape[1])[None] < torch.tensor([len(e.ids) for e in rows])[:, None]
        made.append((np.arange(start, stop), Batch(ids, mask, tuple(e.text for e in rows), ()).to(subject.device)))
        start = stop
    return made


@dataclass(frozen=True, eq=False)
class Labelled:
    """All usable examples of a task in the order of the input; `given`: what the column of the split says of each,
    None where there is none; `rejects` (index, text, reason)."""

    kind: Kind
    label: str
    classes: tuple[str, ...]
    examples: tuple[Example, ...]
    given: tuple[str | None, ...]
    rejects: tuple[tuple[int, str, str], ...]


def prepare(
    subject: Subject, domain: Domain, rows: pl.DataFrame, *, seed: int, split: str | None, limit: int | None = None,
    **given: Any,
) -> TaskData:  # fmt: skip
    """The examples of `labelled` in parts.

    `split` names parts: train and valid and test, or fit and discover and report; without the middle one, half of
    the groups of the first become it. Without `split` groups are dealt out at random, two, one and one quarter of
    the sequences. At most `limit` sequences to discover on, and as many to report on, are taken at random; a readout is
    fitted on all there are. Raises InputError as `labelled`, for groups that stand in two parts, a part without
    examples, and a task of one class or constant labels.
    """
    found = labelled(subject, domain, rows, split=split, **given)
    if split is None:
        where = [PARTS[i] for i in deal([e.group for e in found.examples], SHARES, seed)]
    else:
        where = parts_named(found, split, seed)
    parts = {}
    for part in PARTS:
        chosen = [e for e, p in zip(found.examples, where, strict=True) if p == part]
        if limit is not None and part != "fit" and len(chosen) > limit:
            chosen = [chosen[i] for i in np.random.default_rng((seed, 2)).permutation(len(chosen))[:limit]]
        parts[part] = tuple(sorted(chosen, key=lambda e: len(e.ids)))
    data = TaskData(found.kind, found.label, found.classes, parts, rejects_frame(found.rejects))
    _check(data)
    return data


def labelled(
    subject: Subject,
    domain: Domain,
    rows: pl.DataFrame,
    *,
    label: str,
    kind: Kind | None,
    split: str | None,
    group: str | None,
    mutations: str | None,
    mixed: bool = False,
    rejects: pl.DataFrame | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Labelled:
    """`rows` hold index, sequence, the columns `label`, and those of `split`, `group` and `mutations` where given.
    `mixed`: a column most of which are numbers is one of numbers, and its other cells are refused row by row.

    Raises InputError for a missing column, labels of no known kind and where no row can be used."""
    asked = {"--label": label, "--split": split, "--group": group, "--mutations": mutations}
    of = {option: None if name is None else column_of(rows, name, option) for option, name in asked.items()}
    if kind is not None and kind not in get_args(Kind):
        raise InputError(f"no kind of task {kind!r}: give one of {', '.join(get_args(Kind))}.")
    if (kind == "mutation") != (mutations is not None):
        raise InputError("--task mutation and --mutations COLUMN go together: give both or neither.")
    refused = [] if rejects is None else list(rejects.rows())
    found: list[tuple[dict, np.ndarray, Reading, str]] = []
    unlabelled = are_missing(rows[column_of(rows, label, "--label")].to_list(), f"column {label!r}")
    for row, absent in zip(progress(rows.iter_rows(named=True)), unlabelled, strict=True):
        text = row["sequence"].strip()
        cells = {option: plain(row[column]) for option, column in of.items() if column is not None}
        row = {"index": row["index"], **{option: (cell or "").strip() for option, cell in cells.items()}}
        value = row["--label"]
        try:
            if absent:
                said = f", {value!r} stands for none" if value else ""
                raise InputError(f"it has no label in column {label!r}{said}")
            for option, what in (("--split", "part"), ("--group", "group")):
                if option in row and is_missing(row[option]):
                    raise InputError(f"it has no {what} in column {asked[option]!r}")
            ids, reading = read(subject, domain, text)
            found.append((row, ids, reading, value))
        except InputError as error:
            refused.append((row["index"], text, str(error)))
    if not found:
        raise InputError(f"no row can be used{f'; first reason: {refused[0][2]}' if refused else ''}.")
    if kind is None:
        lengths, places = [reading.n_elements for _, _, reading, _ in found], [row["index"] for row, *_ in found]
        kind = kind_of([value for *_, value in found], lengths, places, label, mixed=mixed)
    if kind == "mutation":
        check_numbering((reading.text, row["--mutations"]) for row, _, reading, _ in found)
    classes = tuple(sorted({value for *_, value in found}, key=natural)) if kind == "class" else ()
    names = domain.groups([r.text for _, _, r, _ in found]) if group is None else [f[0]["--group"] for f in found]
    examples, given = [], []
    for (row, ids, reading, value), name in zip(found, names, strict=True):
        try:
            cell = row.get("--mutations")
            examples.append(_example(subject, kind, row["index"], ids, reading, name, value, classes, cell))
            given.append(row.get("--split"))
        except InputError as error:
            refused.append((row["index"], reading.text, str(error)))
    if not examples:
        raise InputError(f"no row can be used; first reason: {refused[0][2]}.")
    return Labelled(kind, label, classes, tuple(examples), tuple(given), tuple(refused))


def _example(
    subject: Subject, kind: Kind, index: int, ids: np.ndarray, reading: Reading, group: str, value: str,
    classes: tuple[str, ...], mutations: object,
) -> Example:  # fmt: skip
    """Raises InputError for a label that does not fit the sequence."""
    if kind == "class":
        return Example(index, reading.text, ids, group, float(classes.index(value)))
    if kind == "residue":
        if len(value) != reading.n_elements or set(value) - {"0", "1"}:
            raise InputError(f"its label is no string of 0 and 1 of length {reading.n_elements}, one per element")
        tokens = [(place, part) for place, part in enumerate(reading.elements) if part]
        y = np.asarray([max(value[e] == "1" for e in part) for _, part in tokens], dtype=float)
        return Example(index, reading.text, ids, group, y, tuple(place for place, _ in tokens))
    try:
        size = number(value)
    except InputError as error:
        raise InputError(f"its label {error}") from None
    if kind == "regression":
        return Example(index, reading.text, ids, group, size)
    if kind == "masked":
        token_of = {element: place for place, part in enumerate(reading.elements) for element in part}
        if size - 1 not in token_of:
            raise InputError(f"it has no element {value}: they count from 1 to {reading.n_elements}")
        place = token_of[int(size) - 1]
        return Example(index, reading.text, masked(subject, ids, [place]), group, float(ids[place]), (place,))
    changes = swaps(subject, ids, reading, mutations_of(mutations))
    places = tuple(place for place, _, _ in changes)
    return Example(index, reading.text, masked(subject, ids, places), group, size, places, changes)


def masked(subject: Subject, ids: np.ndarray, places: Sequence[int]) -> np.ndarray:
    """A copy with mask tokens at `places`. Raises SubjectError, see `Subject.reading_position`."""
    copy = ids.copy()
    for place in places:
        subject.reading_position(place)
        if subject.mask_id is not None:
            copy[place] = subject.mask_id
    return copy


def parts_named(found: Labelled, column: str, seed: int) -> list[str]:
    """The part, of PARTS, of every example, as the column of the split names it. Raises InputError for a part of
    another name and for groups that stand in two."""
    given, examples = cast("tuple[str, ...]", found.given), found.examples
    known = {"train": "fit", "fit": "fit", "valid": "discover", "val": "discover", "validation": "discover",
             "discover": "discover", "test": "report", "report": "report"}  # fmt: skip
    if wrong := sorted({name for name in given if name.lower() not in known}):
        raise InputError(f"column {column!r} names the part {wrong[0]!r}: use train, valid and test.")
    parts = [known[name.lower()] for name in given]
    seen: dict[str, str] = {}
    leaking = {e.group for e, p in zip(examples, parts, strict=True) if seen.setdefault(e.group, p) != p}
    if leaking:
        group = min(leaking)
        of_group = {p: e.index for e, p in zip(examples, parts, strict=True) if e.group == group}
        one, other = [*of_group.values()][:2]
        raise InputError(
            f"{len(leaking)} groups of relatives stand in two parts of column {column!r}, such as {group!r} (rows "
            f"{one} and {other}): leave out --split to have whole groups dealt out, or name the groups your split "
            "keeps with --group."
        )
    if "discover" not in parts:
        halves = iter(deal([e.group for e, p in zip(examples, parts, strict=True) if p == "fit"], (0.5, 0.5), seed))
        parts = [PARTS[next(halves)] if p == "fit" else p for p in parts]
    return parts


def _check(data: TaskData) -> None:
    for part, examples in data.parts.items():
        if not examples:
            raise InputError(f"the part {part!r} of the split is empty: give more sequences or another --split.")
        if data.kind == "masked":
            continue
        values = np.unique(np.concatenate([np.atleast_1d(e.y) for e in examples]))
        if len(values) < 2:
            what = data.classes[int(values[0])] if data.kind == "class" else f"{values[0]:g}"
            raise InputError(f"the part {part!r} has one label only ({what}): a task needs two classes or more.")
        if data.kind == "class" and len(values) < len(data.classes):
            lost = next(name for i, name in enumerate(data.classes) if i not in values)
            raise InputError(f"the part {part!r} has no example of class {lost!r}: drop that class or split otherwise.")
