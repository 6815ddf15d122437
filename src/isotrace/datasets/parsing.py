"""Text and tables → rows of `index`, `name`, `sequence` and whatever else the source carries.

Each parser returns a table and the rows it had to leave out. Rows are numbered in the source's order from 0,
bad ones included, so an index finds its row again.
"""

import re
from collections.abc import Sequence
from typing import Any

import polars as pl
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.datasets.reading.cells import (
    NAME_COLUMNS,
    SEQUENCE_COLUMNS,
    damage,
    free_names,
    listed,
    meant,
    shown,
    typed,
)  # fmt: skip
from isotrace.datasets.reading.delimited import table as read_table
from isotrace.datasets.reading.sdf import ORIGINAL, OWN, Reject, Table, written


def columns(table: pl.DataFrame, column: str | None, label: str, index: Sequence[int] | None = None) -> pl.DataFrame:
    """`table` with its sequence and name columns under those names, and `index` (default: 0, 1, …) in front.

    The name column is the one called `name`, else `id`, in any case. Another column that is called like one of
    ours gets `input_` before its name. Python objects become their text; in the sequence column molecules are as in
    `values`. Raises InputError if no one column of text is the sequence column.
    """
    candidates = [name for name in table.columns if name.strip().lower() in SEQUENCE_COLUMNS]
    if column is not None and column not in table.columns:
        raise InputError(f"{label} has no column {column!r} for --column: {meant(column, table.columns)}.")
    if column is None and len(candidates) != 1:
        fault = "more than one column called" if candidates else "no column called"
        names = listed(candidates or table.columns)
        raise InputError(f"{label} has {fault} 'smiles' or 'sequence': give --column one of {names}.")
    chosen = column or candidates[0]
    own = {"index": pl.Series(range(table.height) if index is None else index, dtype=pl.Int64)}
    others = [name for name in table.columns if name != chosen]
    named = next((name for wanted in NAME_COLUMNS for name in others if name.lower() == wanted), None)
    own["name"] = _text(table[named]) if named else pl.Series([None] * table.height, dtype=pl.String)
    own |= _sequences(table[chosen], label)
    kept = [name for name in others if name != named]
    free = free_names(kept, {*OWN, *own})
    rest = {free[name]: table[name] for name in kept}
    return pl.DataFrame(
        own
        | {
            name: _text(cells) if re.search("Object|Binary", str(cells.dtype)) else cells
            for name, cells in rest.items()
        }
    )


def _sequences(cells: pl.Series, label: str) -> dict[str, pl.Series]:
    """The column `sequence`, and of molecules `original`. Raises InputError for what is neither."""
    if cells.dtype == pl.Object:
        objects = cells.to_list()
        kinds = {type(x).__name__: isinstance(x, str | Chem.Mol) for x in objects if x is not None}
        if kinds and not any(kinds.values()):
            raise InputError(f"column {cells.name!r} of {label} holds {min(kinds)}, not text: give another --column.")
        texts = [x if x is None or isinstance(x, Chem.Mol) else shown(str(x)) for x in objects]
        found = [written(x) if isinstance(x, Chem.Mol) else (x, None) for x in texts]
        order = pl.Series([order for _, order in found], dtype=ORIGINAL["original"])
        molecules = {} if order.null_count() == len(order) else {"original": order}
        return {"sequence": pl.Series([text for text, _ in found], dtype=pl.String), **molecules}
    if cells.dtype not in (pl.String, pl.Categorical, pl.Enum, pl.Null, pl.Binary):
        raise InputError(f"column {cells.name!r} of {label} holds {cells.dtype}, not text: give another --column.")
    return {"sequence": _text(cells)}


def _text(cells: pl.Series) -> pl.Series:
    """As polars writes it, or else as Python does; molecules as SMILES, bytes as UTF-8."""
    if cells.dtype.is_nested() or cells.dtype in (pl.Object, pl.Binary, pl.Duration):
        return pl.Series(cells.name, [None if x is None else _written(x) for x in cells.to_list()], dtype=pl.String)
    return cells.cast(pl.String)


def _written(x: Any) -> str:
    if isinstance(x, Chem.Mol):
        return Chem.MolToSmiles(x)
    return x.decode("utf-8", "backslashreplace") if isinstance(x, bytes) else shown(str(x))


def delimited(text: str, separator: str, column: str | None, label: str) -> Table:
    """Comma- or tab-separated rows under a header; columns of numbers become Int64 or Float64."""
    head, records, label = read_table(text, separator, lambda names: _fits(names, column), label)
    if damage(head):
        raise InputError(f"line 1 of {label} is not UTF-8: save the file as UTF-8.")
    names = [name or f"column_{i}" for i, name in enumerate(head)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{label} has two columns called {twice[0]!r}: rename one.")
    index: list[int] = []
    cells: list[list[str | None]] = []
    bad: list[Reject] = []
    for i, (_, record) in enumerate(records):
        if isinstance(record, str):
            bad.append((i, "", record))
        elif record and len(record) != len(names):
            bad.append((i, shown(separator.join(record)), f"{len(record)} fields instead of {len(names)}"))
        elif fault := damage(record):
            bad.append((i, shown(separator.join(record)), fault))
        else:
            index.append(i)
            cells.append([cell or None for cell in record] or [None] * len(names))
    table = pl.DataFrame(cells, schema=dict.fromkeys(names, pl.String), orient="row")
    frame = columns(table, column, label, index)
    return frame.with_columns(typed(series) for series in frame.iter_columns() if series.name not in OWN), bad


def _fits(names: list[str], column: str | None) -> bool:
    return column in names if column is not None else any(name.lower() in SEQUENCE_COLUMNS for name in names)


def lines(text: str, label: str) -> Table:
    """Per line a sequence, then optionally blanks and a name. A line `smiles …` on top is a header. Raises InputError
    for the header of a table, whose first column would be taken for sequences."""
    pairs = [_pair(line) for line in text.rstrip().split("\n")]
    head = [name.strip().lower() for name in re.split(r"[\t,;|]", text.lstrip().partition("\n")[0])]
    if len(head) > 1 and any(name in SEQUENCE_COLUMNS for name in head) and pairs[0][0].lower() not in SEQUENCE_COLUMNS:
        raise InputError(f"{label} is a table: rename it to end in .csv, or in .tsv where tabs separate its columns.")
    if pairs[0][0].lower() in SEQUENCE_COLUMNS:
        del pairs[0]
    return _rows(pairs, {})


def fasta(text: str) -> Table:
    """`>name description`, then the sequence up to the next header; the description becomes a column."""
    preamble, *chunks = re.split(r"^>", text, flags=re.MULTILINE)
    pairs, descriptions, bad = [], [], {}
    if preamble.strip():
        pairs.append((preamble.strip(), None))
        descriptions.append(None)
        bad[0] = "text before the first '>'"
    for chunk in chunks:
        header, _, body = chunk.partition("\n")
        name, description = _pair(header)
        pairs.append(("".join(body.split()), name))
        descriptions.append(description)
        if fault := damage([chunk]):
            bad[len(pairs) - 1] = fault
    frame, rejects = _rows(pairs, bad)
    kept = pl.Series([descriptions[i] for i in frame["index"]], dtype=pl.String)
    return frame.with_columns(description=kept), rejects


def values(cells: Sequence[Any]) -> Table:
    """Strings and RDKit molecules in order; an empty cell is an empty sequence, anything else is rejected. Where there
    are molecules there is `original`, see `written`, null for a string."""
    pairs: list[tuple[str, str | None]] = []
    bad, orders = {}, {}
    for i, cell in enumerate(cells):
        if isinstance(cell, Chem.Mol):
            text, orders[i] = written(cell)
            pairs.append((text, cell.GetProp("_Name") if cell.HasProp("_Name") else None))
        elif cell is None or isinstance(cell, str):
            pairs.append((cell or "", None))
        else:
            pairs.append((repr(cell), None))
            bad[i] = f"{type(cell).__name__}, not text"
    frame, rejects = _rows(pairs, bad)
    if orders:
        kept = [orders.get(i) for i in frame["index"]]
        frame = frame.with_columns(pl.Series("original", kept, dtype=ORIGINAL["original"]))
    return frame, rejects


def _rows(pairs: list[tuple[str, str | None]], bad: dict[int, str]) -> Table:
    """Frame of `(sequence, name)` in order, without those in `bad` (index → reason) and those damaged."""
    good, rejects = [], []
    for i, (sequence, name) in enumerate(pairs):
        if reason := bad.get(i) or damage([sequence, name or ""]):
            rejects.append((i, shown(sequence), reason))
        else:
            good.append((i, name or None, sequence))
    return pl.DataFrame(good, schema=OWN, orient="row"), rejects


def _pair(line: str) -> tuple[str, str | None]:
    first, *rest = line.split(maxsplit=1) or [""]
    return first, rest[0].strip() if rest else None
