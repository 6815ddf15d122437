"""What the cells of label columns say: their concepts, and the labels of each sequence.

A sequence whose label is missing, damaged or contradicted by another line is refused with the reason, never taken for
a negative.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import sparse
from scipy.sparse.csgraph import connected_components

from isotrace.base.errors import InputError
from isotrace.datasets.reading.cells import are_missing, is_missing, plain, why_no_number
from isotrace.domains.domain import Concept, Domain, Labels, Reading

KINDS = {
    "token": "a string with one character per atom or residue",
    "class": "a category of the sequence",
    "class-if-known": "the same, an empty cell or NA meaning not known",
    "value": "a number of the sequence",
    "value-if-known": "the same, an empty cell or NA meaning not known",
    "maps": "the atom-mapped reaction",
}
MAX_VALUES = 200
NO_LABEL = "."

Cell = str | float | None


@dataclass(frozen=True)
class LabelColumn:
    """One declared column: its kind (of `KINDS`), the column it stands in, and the name its concepts get."""

    kind: str
    column: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    @classmethod
    def parse(cls, spec: str) -> "LabelColumn":
        """From `kind:column` or `kind:column:name`; InputError lists what is allowed."""
        kind, *rest = (part.strip() for part in spec.split(":", 2))
        if kind not in KINDS or not rest or not all(rest):
            allowed = "; ".join(f"{name} ({what})" for name, what in KINDS.items())
            raise InputError(f"label column {spec!r}: write kind:column or kind:column:name, the kind being {allowed}.")
        return cls(kind, rest[0], rest[-1])


@dataclass(frozen=True)
class Record:
    """One line of labels: where it stands (`line 7`), its sequence, and a cell per label column."""

    where: str
    text: str
    cells: Sequence[str | None]


def data_cells(series: pl.Series, column: LabelColumn) -> list[str | None]:
    """A column of the data as text, None where it is empty."""
    dtype = series.dtype
    if dtype.is_numeric():
        if column.kind in ("token", "maps"):
            raise InputError(
                f"column {column.column!r} of the data was read as numbers, for {column} it must be text: give it as "
                "text, or in a label file (--concepts), where no cell is turned into a number."
            )
        return [plain(x) for x in series]
    if dtype == pl.Boolean:
        return series.cast(pl.Int8).cast(pl.String).to_list()
    if dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null):
        return series.cast(pl.String).to_list()
    raise InputError(f"column {column.column!r} of the data holds {dtype}, neither text nor numbers: give another.")


def labelling(
    columns: Sequence[LabelColumn], records: Sequence[Record], source: str, domain: Domain
) -> tuple[tuple[Concept, ...], Callable[[str, Reading], Labels], dict[str, str] | None]:
    """The concepts of `columns`; a function that labels the sequence `text` of one of `records`; and the atom maps.

    The function raises InputError with the reason for a sequence that must not be used.
    """
    names = [column.name for column in columns]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{source}: {twice[0]!r} is given twice: rename one.")
    mapped = [i for i, column in enumerate(columns) if column.kind == "maps"]
    if len(mapped) > 1 or (mapped and not hasattr(domain, "with_maps")):
        raise InputError(f"{source}: only reactions take maps:…, and one such column: leave out {columns[mapped[-1]]}.")
    rows, faults = _rows(columns, records, source)
    places: list[dict[Cell, int]] = []
    concepts: list[Concept] = []
    for i, column in enumerate(columns):
        kind = column.kind.removesuffix("-if-known")
        values = _values(column, [row[i] for row in rows.values()], source)
        places.append({value: len(concepts) + k for k, value in enumerate(values)})
        if kind == "value":
            concepts.append(Concept(column.name, column.name, "value"))
        elif kind != "maps":
            form = "token" if kind == "token" else "class"
            concepts += [Concept(f"{column.name}={value}", column.name, form) for value in values]
    # Without a line, a class or value is just not known; a token or a reacting atom would count as a negative.
    required = any(column.kind in ("token", "maps") for column in columns)

    def label(text: str, reading: Reading) -> Labels:
        numbers = np.full(len(concepts), np.nan)
        if text in faults:
            raise InputError(faults[text])
        if text not in rows:
            if required:
                raise InputError(f"no label in {source}")
            return Labels((), numbers)
        instances: list[tuple[int, tuple[int, ...]]] = []
        for column, place, cell in zip(columns, places, rows[text], strict=True):
            if column.kind == "token":
                try:
                    runs = _runs(str(cell), reading, domain)
                except InputError as error:
                    raise InputError(f"{column} of {source} {error}") from None
                instances += [(place[character], tokens) for character, tokens in runs]
            elif cell is not None and column.kind.startswith("class"):
                for value, concept in place.items():
                    numbers[concept] = float(value == cell)
            elif cell is not None and column.kind.startswith("value"):
                numbers[next(iter(place.values()))] = cell
        return Labels(tuple(instances), numbers)

    maps = {text: str(row[mapped[0]]) for text, row in rows.items() if text not in faults} if mapped else None
    return tuple(concepts), label, maps


def _rows(columns, records, source: str) -> tuple[dict[str, tuple[Cell, ...]], dict[str, str]]:
    """Cells by sequence, and why a sequence must not be used."""
    rows: dict[str, tuple[Cell, ...]] = {}
    first: dict[str, str] = {}
    faults: dict[str, str] = {}
    absent = [_absent(column, records, i, source) for i, column in enumerate(columns)]
    for k, record in enumerate(records):
        try:
            row = tuple(_cell(column, record.cells[i], absent[i][k]) for i, column in enumerate(columns))
        except InputError as error:
            faults.setdefault(record.text, f"{error} in {record.where} of {source}")
            continue
        where = first.setdefault(record.text, record.where)
        if rows.setdefault(record.text, row) != row:
            faults.setdefault(record.text, f"{source} labels it differently in {where} and {record.where}")
    return rows, faults


def _absent(column: LabelColumn, records: Sequence[Record], i: int, source: str) -> list[bool]:
    """Which cells of column `i` stand for no label. Raises InputError as `are_missing`."""
    cells = [record.cells[i] for record in records]
    if column.kind.startswith("class"):
        return are_missing(cells, f"{column} of {source}", classes=True)
    if column.kind == "token":
        # Blanks are letters in the alphabets of secondary structure, and so are those of NA where two are labelled.
        own = [cell is not None and len(cell) == len(record.text) for cell, record in zip(cells, records, strict=True)]
        return [not cell or (is_missing(cell.strip() or "_") and cell != NO_LABEL and not fits) for cell, fits in
                zip(cells, own, strict=True)]  # fmt: skip
    return [is_missing(cell) for cell in cells]


def _cell(column: LabelColumn, cell: str | None, absent: bool) -> Cell:
    """What a cell says, None for not known. Raises InputError with the reason if it says nothing usable."""
    text = (cell or "") if column.kind == "token" else (cell or "").strip()
    if absent:
        if column.kind.endswith("-if-known"):
            return None
        raise InputError(f"{column} is {text or 'empty'}")
    if not column.kind.startswith("value"):
        return text
    if why := why_no_number(text):
        raise InputError(f"{column} is {text!r}, which {why},")
    return float(text)


def _values(column: LabelColumn, cells: Sequence[Cell], source: str) -> list[Cell]:
    """What the column has a concept for: each character or class; for a number, one."""
    if column.kind.startswith(("value", "maps")):
        return [None]
    known = [str(cell) for cell in cells if cell is not None]
    if column.kind == "token":
        found = sorted(set("".join(known)) - {NO_LABEL})
    else:
        found = sorted(set(known))
        if found and set(found) <= {"0", "1"}:
            found = ["1"]
    if not found:
        raise InputError(f"{column} of {source} holds no label: fill it or leave it out.")
    if len(found) > MAX_VALUES:
        raise InputError(
            f"{column} of {source} has {len(found)} different values, more than {MAX_VALUES}: put the rare ones "
            "together, or declare numbers as value:."
        )
    return list(found)


def _runs(text: str, reading: Reading, domain: Domain) -> list[tuple[str, tuple[int, ...]]]:
    """(character, tokens) of every largest set of neighbouring elements that carry the same character."""
    n = reading.n_elements
    if len(text) != n:
        raise InputError(f"has {len(text)} characters for {n} {domain.element}s")
    letters = np.asarray(list(text))
    pairs = domain.bonds(reading).reshape(-1, 2)
    pairs = pairs[letters[pairs[:, 0]] == letters[pairs[:, 1]]]
    graph = sparse.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    run = connected_components(graph, directed=False)[1]
    tokens: dict[int, set[int]] = {}
    for token, elements in enumerate(reading.elements):
        for element in elements:
            tokens.setdefault(int(run[element]), set()).add(token)
    starts = {int(r): i for i, r in reversed(list(enumerate(run.tolist())))}
    return [(text[starts[r]], tuple(sorted(found))) for r, found in tokens.items() if text[starts[r]] != NO_LABEL]
