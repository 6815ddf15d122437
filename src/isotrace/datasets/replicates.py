"""A table of measurements made ready: counter-ions off, one row per thing, numbers with decimal commas read.

What is left out is a reject with its reason, what is changed is counted.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import polars as pl

from isotrace.base.errors import InputError
from isotrace.datasets.inputs import rejects_frame
from isotrace.datasets.reading.cells import column_of, is_missing, plain, why_no_number
from isotrace.datasets.task_labels import Kind, kind_of
from isotrace.domains.domain import Domain

Salts = Literal["strip", "keep"]
MIN_RESIDUES = 3
"""Digits 0 and 1 up to which a label is a number, not one per atom or residue."""
_COMMA = re.compile(r"[+-]?\d*,\d+")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")


@dataclass(frozen=True)
class Cleaned:
    """`rows` as `read_inputs` gives them, the label as text, and with the column `as_given` where a sequence was
    changed; `counts`: how many salts were stripped, decimal commas read, repeats joined; `spread`: standard deviation
    of repeated numbers about their means, over all repeats, equal ones too; None where none is repeated."""

    rows: pl.DataFrame
    rejects: pl.DataFrame
    counts: dict[str, int]
    spread: float | None


def cleaned(
    rows: pl.DataFrame,
    rejects: pl.DataFrame,
    domain: Domain,
    *,
    label: str,
    split: str | None,
    salts: Salts,
    kind: Kind | None = None,
) -> Cleaned:
    """Numbers of one thing become their mean, and what is no number is left to be refused by itself; rows with other
    labels are refused where the labels of one thing differ. `kind`: of the task, else told from the labels.

    Raises InputError for a column that is not there, and for one thing in two parts of the column `split`."""
    label = column_of(rows, label, "--label")
    parts = None if split is None else rows[column_of(rows, split, "--split")].to_list()
    refused, counts = list(rejects.rows()), {"salts": 0, "decimal_commas": 0, "repeats": 0}
    cells = [None if cell is None else str(plain(cell)).strip() for cell in rows[label].to_list()]
    cells, counts["decimal_commas"] = _points(cells)
    numeric = (kind or _kind(cells, label)) == "regression"
    given, texts, found = rows["sequence"].to_list(), [], defaultdict(list)
    known = cache(lambda text: _named(text, domain, salts))
    for i, text in enumerate(given):
        own, name = known(text)
        texts.append(own)
        counts["salts"] += own != text
        usable = why_no_number(cells[i] or "") is None if numeric else not is_missing(cells[i])
        if name is not None and usable:
            found[name].append(i)
    keep, squares, repeated = np.ones(len(texts), dtype=bool), 0.0, 0
    index = rows["index"].to_list()
    for members in found.values():
        if len(members) < 2:
            continue
        if parts is not None and len({str(parts[i]) for i in members}) > 1:
            one, other = members[0], next(i for i in members if parts[i] != parts[members[0]])
            raise InputError(
                f"rows {index[one]} and {index[other]} are the same {domain.name} and stand in two parts of column "
                f"{split!r}: keep them together."
            )
        first, labels = members[0], {cells[i] for i in members}
        if len(labels) > 1 and not numeric:
            for i in members:
                keep[i] = False
                others = ", ".join(str(index[j]) for j in members if j != i)
                refused.append((index[i], given[i], f"it is also row {others}, with another label than {cells[i]!r}"))
            continue
        if numeric:
            numbers = np.asarray([float(cells[i] or "") for i in members])
            squares, repeated = squares + float(np.sum((numbers - numbers.mean()) ** 2)), repeated + len(members) - 1
            cells[first] = repr(float(numbers.mean())) if len(labels) > 1 else cells[first]
        stands = f"it repeats row {index[first]}, which has {'the mean of their labels' if numeric else 'its label'}"
        for i in members[1:]:
            keep[i] = False
            counts["repeats"] += 1
            refused.append((index[i], given[i], stands))
    changed = {"sequence": texts, label: cells}
    columns: list[Any] = [pl.Series(name, values, dtype=pl.String) for name, values in changed.items()]
    if counts["salts"]:
        columns.append(pl.Series("as_given", given, dtype=pl.String))
    kept = rows.with_columns(columns).filter(pl.Series(keep))
    return Cleaned(kept, rejects_frame(refused), counts, float(np.sqrt(squares / repeated)) if repeated else None)


def _named(text: str, domain: Domain, salts: Salts) -> tuple[str, str | None]:
    """(the text without counter-ions, what it is called); None where it cannot be read: it is refused, with the reason,
    where it is tokenised."""
    try:
        name = domain.same(text)
        own = domain.parent(text) if salts == "strip" else text
        return own, name if own == text else domain.same(own)
    except InputError:
        return text, None


def _kind(cells: list[str | None], label: str) -> Kind | None:
    """What `kind_of` says of the column without its sequences, so of residues by strings of 0 and 1; None where it says
    nothing of it."""
    filled = [cell for cell in cells if cell is not None and not is_missing(cell)]
    lengths = [len(cell) if len(cell) > MIN_RESIDUES else -1 for cell in filled]
    try:
        return kind_of(filled, lengths, label=label, mixed=True)
    except InputError:  # said again, with its row, where the labels are read
        return None


def _points(cells: list[str | None]) -> tuple[list[str | None], int]:
    """Cells with points where the column is written with decimal commas, and how many: most numbers have one, none has
    a point, and they cannot all be thousands."""
    commas = [cell for cell in cells if cell and _COMMA.fullmatch(cell)]
    filled = [cell for cell in cells if not is_missing(cell)]
    if any("." in cell for cell in filled if cell) or 2 * len(commas) < max(1, len(filled)):
        return cells, 0
    if all(_THOUSANDS.fullmatch(cell) for cell in commas):
        return cells, 0
    return [cell.replace(",", ".") if cell and _COMMA.fullmatch(cell) else cell for cell in cells], len(commas)
