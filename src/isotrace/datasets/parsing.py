"""Text and tables → rows of `index`, `name`, `sequence` and whatever else the source carries.

Each parser returns a table and the rows it had to leave out. Rows are numbered in the source's order from 0,
bad ones included, so an index finds its row again.
"""

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

import polars as pl
from rdkit import Chem, rdBase

from isotrace.base.errors import InputError

SEQUENCE_COLUMNS = ("smiles", "sequence")
NAME_COLUMNS = ("name", "id")
OWN = {"index": pl.Int64, "name": pl.String, "sequence": pl.String}
ORIGINAL = {"original": pl.List(pl.Int64)}

Reject = tuple[int, str, str]
Table = tuple[pl.DataFrame, list[Reject]]


def columns(table: pl.DataFrame, column: str | None, label: str, index: Sequence[int] | None = None) -> pl.DataFrame:
    """`table` with its sequence and name columns under those names, and `index` (default: 0, 1, …) in front.

    The name column is the one called `name`, else `id`, in any case. Another column that is called like one of
    ours gets `input_` before its name. Raises InputError if no one column of text is the sequence column.
    """
    candidates = [name for name in table.columns if name.lower() in SEQUENCE_COLUMNS]
    listed = ", ".join(table.columns)
    if column is not None and column not in table.columns:
        raise InputError(f"{label} has no column {column!r}: give --column one of {listed}.")
    if column is None and len(candidates) != 1:
        fault = "more than one column called" if candidates else "no column called"
        raise InputError(f"{label} has {fault} 'smiles' or 'sequence': give --column one of {listed}.")
    chosen = column or candidates[0]
    if table.schema[chosen] not in (pl.String, pl.Categorical, pl.Null):
        raise InputError(f"column {chosen!r} of {label} holds {table.schema[chosen]}, not text: give another --column.")
    others = [name for name in table.columns if name != chosen]
    named = next((name for wanted in NAME_COLUMNS for name in others if name.lower() == wanted), None)
    own = {
        "index": pl.Series(range(table.height) if index is None else index, dtype=pl.Int64),
        "name": table[named].cast(pl.String) if named else pl.Series([None] * table.height, dtype=pl.String),
        "sequence": table[chosen].cast(pl.String),
    }
    rest = {}
    for name in others:
        if name != named:
            free = name
            while free in OWN or free in rest or (free != name and free in others):
                free = f"input_{free}"
            rest[free] = table[name]
    return pl.DataFrame(own | rest)


def delimited(text: str, separator: str, column: str | None, label: str) -> Table:
    """Comma- or tab-separated rows under a header; columns of numbers become Int64 or Float64."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    records: list[list[str] | str] = []
    while True:
        first = reader.line_num + 1
        try:
            records.append(next(reader))
        except StopIteration:
            break
        except csv.Error as error:
            # An open quotation mark swallows the lines after it: say which.
            records.append(f"lines {first} to {reader.line_num} cannot be read: {error}")
    while records and records[-1] == []:
        records.pop()
    head = records.pop(0)
    if isinstance(head, str) or not head or _damage(head):
        raise InputError(f"{label} has no readable header: name the columns in line 1, in UTF-8.")
    names = [name.strip() or f"column_{i}" for i, name in enumerate(head)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{label} has two columns called {twice[0]!r}: rename one.")
    index: list[int] = []
    cells: list[list[str | None]] = []
    bad: list[Reject] = []
    for i, record in enumerate(records):
        if isinstance(record, str):
            bad.append((i, "", record))
        elif record and len(record) != len(names):
            bad.append((i, _shown(separator.join(record)), f"{len(record)} fields instead of {len(names)}"))
        elif damage := _damage(record):
            bad.append((i, _shown(separator.join(record)), damage))
        else:
            index.append(i)
            cells.append([cell or None for cell in record] or [None] * len(names))
    table = pl.DataFrame(cells, schema=dict.fromkeys(names, pl.String), orient="row")
    frame = columns(table, column, label, index)
    return frame.with_columns(_typed(series) for series in frame.iter_columns() if series.name not in OWN), bad


def lines(text: str) -> Table:
    """Per line a sequence, then optionally blanks and a name. A line `smiles …` on top is a header."""
    pairs = [_pair(line) for line in text.rstrip().split("\n")]
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
        if damage := _damage([chunk]):
            bad[len(pairs) - 1] = damage
    frame, rejects = _rows(pairs, bad)
    kept = pl.Series([descriptions[i] for i in frame["index"]], dtype=pl.String)
    return frame.with_columns(description=kept), rejects


def sdf(text: str) -> Table:
    """One row per record: its title, RDKit's canonical SMILES, `original`, see `written`, and its data fields."""
    records = re.split(r"^\$\$\$\$.*\n?", text, flags=re.MULTILINE)
    if not records[-1].strip():
        records.pop()
    good, fields, bad = [], [], []
    for i, record in enumerate(records):
        title = record.partition("\n")[0].strip()
        if damage := _damage([record]):
            bad.append((i, _shown(title), damage))
            continue
        with rdBase.BlockLogs():
            mol = next(iter(Chem.ForwardSDMolSupplier(io.BytesIO(f"{record}$$$$\n".encode()))), None)
            if mol is None:
                bad.append((i, title, _why(record)))
                continue
            good.append((i, title or None, *written(mol)))
            fields.append(mol.GetPropsAsDict(autoConvertStrings=False))
    frame = pl.DataFrame(good, schema=OWN | ORIGINAL, orient="row")
    for key in dict.fromkeys(key for field in fields for key in field):
        name = f"input_{key}" if key in OWN | ORIGINAL else key
        frame = frame.with_columns(
            _typed(pl.Series(name, [field.get(key) or None for field in fields], dtype=pl.String))
        )
    return frame, bad


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


def written(mol: Chem.Mol) -> tuple[str, list[int]]:
    """(RDKit's canonical SMILES, `original`): the i-th atom of the text is atom `original[i]` of `mol`."""
    text = Chem.MolToSmiles(mol)
    return text, [*mol.GetPropsAsDict(includePrivate=True, includeComputed=True)["_smilesAtomOutputOrder"]]


def _rows(pairs: list[tuple[str, str | None]], bad: dict[int, str]) -> Table:
    """Frame of `(sequence, name)` in order, without those in `bad` (index → reason) and those damaged."""
    good, rejects = [], []
    for i, (sequence, name) in enumerate(pairs):
        if reason := bad.get(i) or _damage([sequence, name or ""]):
            rejects.append((i, _shown(sequence), reason))
        else:
            good.append((i, name or None, sequence))
    return pl.DataFrame(good, schema=OWN, orient="row"), rejects


def _pair(line: str) -> tuple[str, str | None]:
    first, *rest = line.split(maxsplit=1) or [""]
    return first, rest[0].strip() if rest else None


def _typed(series: pl.Series) -> pl.Series:
    """Text as Int64 or Float64 if every filled cell is a number, and none a string of digits that would be lost as one:
    with a leading zero, or longer than Int64 holds (labels of residues are written so)."""
    long = series.str.contains(r"^[+-]?\d+$") & series.cast(pl.Int64, strict=False).is_null()
    if (series.str.contains(r"^[+-]?0\d") | long).any():
        return series
    for dtype in (pl.Int64, pl.Float64):
        cast = series.cast(dtype, strict=False)
        if cast.null_count() == series.null_count() < len(series):
            return cast
    return series


def _why(record: str) -> str:
    mol = Chem.MolFromMolBlock(record, sanitize=False)
    problems = [] if mol is None else Chem.DetectChemistryProblems(mol)
    return f"RDKit refuses the molecule: {problems[0].Message()}" if problems else "RDKit cannot read the record"


def _damage(cells: Sequence[str]) -> str | None:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return "the row is not UTF-8"
    return None


def _shown(text: str) -> str:
    """`text` with undecoded bytes as `\\xff`, so that it can be printed and stored."""
    text = re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", text)
    return text.encode("utf-8", "backslashreplace").decode()
