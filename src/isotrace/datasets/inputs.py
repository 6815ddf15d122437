"""Reading sequences from whatever holds them. One bad row never stops the rest: it is rejected with a reason.

Nothing here judges chemistry or biology: a row is usable as soon as it holds text. Whether the text is a
molecule, a reaction or a protein is the domain's question, and its refusals join the same rejects table.
"""

import io
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.base.files import WORKBOOKS, decoded, read_whole, refuse_workbook
from isotrace.datasets.parsing import columns, delimited, fasta, lines, values
from isotrace.datasets.reading.cells import is_missing, of_objects
from isotrace.datasets.reading.sdf import Reject, Table, sdf

FORMATS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".smi": "lines",
    ".smiles": "lines",
    ".txt": "lines",
    ".sdf": "sdf",
    ".fasta": "fasta",
    ".fa": "fasta",
    ".faa": "fasta",
}
REJECTS = {"index": pl.Int64, "input": pl.String, "reason": pl.String}


def read_inputs(source: Any, *, column: str | None = None) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Usable rows and rejected rows of `source`.

    source: a sequence, a path, `"-"` for standard input, a list of sequences or RDKit molecules, one RDKit
        molecule, or a polars or pandas Series or DataFrame. A string is a path if such a file exists or if it
        ends like one that can be read (`.csv`, `.tsv`, `.parquet`, `.smi`, `.smiles`, `.txt`, `.sdf`, `.fasta`,
        `.fa`, `.faa`, all but Parquet also with `.gz`); every other string is one sequence.
    column: the column that holds the sequences; without it, the one called `smiles` or `sequence` in any case.
        With `"-"`, standard input is then a CSV table.

    Returns `(rows, rejects)`. rows: `index` (Int64, position in the source from 0), `name` (String, null where
    the source gives none), `sequence` (String, not blank), then the source's other columns; where molecules were
    given, `original` (List(Int64)): the i-th atom of the text is atom `original[i]` of the molecule. rejects: `index`
    (Int64), `input` (String), `reason` (String), ordered by index.

    Raises InputError if the source as a whole cannot be read, holds no row, or leaves the column open.
    """
    frame, bad = _load(source, column)
    frame = frame.with_columns(pl.col("sequence").str.strip_chars())
    absent = pl.Series([is_missing(text) for text in frame["sequence"]], dtype=pl.Boolean)
    for index, name, text in frame.filter(absent)["index", "name", "sequence"].rows():
        if text:
            bad.append((index, text, f"the sequence is {text!r}, which stands for none"))
        else:
            bad.append((index, name or "", "the sequence is empty"))
    if not bad and frame.is_empty():
        raise InputError(f"{_label(source)} holds no row: give at least one sequence.")
    return frame.filter(~absent), rejects_frame(bad)


def rejects_frame(records: Iterable[Reject]) -> pl.DataFrame:
    """Table of `(index, input, reason)`, ordered by index: `index` Int64, `input` and `reason` String."""
    return pl.DataFrame(list(records), schema=REJECTS, orient="row").sort("index", maintain_order=True)


def _load(source: Any, column: str | None) -> Table:
    pandas = type(source).__name__ if type(source).__module__.partition(".")[0] == "pandas" else None
    if isinstance(source, str) and source == "-":
        return _stdin(column)
    if isinstance(source, Path) or (isinstance(source, str) and (os.path.isfile(source) or _is_file_name(source))):
        return _file(Path(source), column)
    if isinstance(source, pl.DataFrame):
        return columns(source, column, "the table"), []
    if pandas == "DataFrame":
        return columns(_pandas_frame(source), column, "the table"), []
    if column is not None:
        raise InputError(f"{_label(source)} has no columns: leave out --column {column}.")
    if isinstance(source, str | Chem.Mol):
        return values([source])
    if pandas == "Series":
        return values(_pandas_cells(source))
    if isinstance(source, pl.Series | list | tuple):
        return values(list(source))
    raise InputError(f"cannot read sequences from {type(source).__name__}: give text, a list, a table or a path.")


def _pandas_cells(series: Any) -> list[Any]:
    return series.astype(object).where(series.notna(), None).tolist()


def _pandas_frame(frame: Any) -> pl.DataFrame:
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        raise InputError("the table has two columns of one name: rename one.")
    cells = (_pandas_cells(frame.iloc[:, i]) for i in range(len(names)))
    return pl.DataFrame([of_objects(name, column) for name, column in zip(names, cells, strict=True)])


def _label(source: Any) -> str:
    if isinstance(source, str | Path):
        return "standard input" if source == "-" else str(source)
    return f"the {type(source).__name__} given"


def _format(path: Path) -> str | None:
    name = path.name.lower()
    found = FORMATS.get(os.path.splitext(name.removesuffix(".gz"))[1])
    return None if name.endswith(".gz") and found == "parquet" else found


def _is_file_name(text: str) -> bool:
    return _format(Path(text)) is not None or text.lower().endswith(WORKBOOKS)


def _stdin(column: str | None) -> Table:
    data = sys.stdin.buffer.read()
    if column is not None:
        return _parse("csv", data, column, "standard input")
    start = data.lstrip()
    # `>>` opens a reaction without reactants, a single `>` a FASTA header.
    is_fasta = start.startswith(b">") and not start.startswith(b">>")
    return _parse("fasta" if is_fasta else "lines", data, None, "standard input")


def _file(path: Path, column: str | None) -> Table:
    refuse_workbook(path)
    form = _format(path)
    if form is None:
        raise InputError(
            f"{path} is of no known kind: convert it to one of {', '.join(FORMATS)}, and name it so (all but Parquet "
            "also with .gz)."
        )
    return _parse(form, read_whole(path), column, str(path))


def _parse(form: str, data: bytes, column: str | None, label: str) -> Table:
    text = "" if form == "parquet" else decoded(data, label)
    if not (data if form == "parquet" else text.strip()):
        raise InputError(f"{label} is empty: give at least one sequence.")
    if form == "parquet":
        table = _parquet(data, label)
        return columns(table, column, label), []
    if form in ("csv", "tsv"):
        return delimited(text, "," if form == "csv" else "\t", column, label)
    if column is not None:
        raise InputError(f"{label} has no columns to choose from: leave out --column {column}.")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if form == "lines":
        return lines(text, label)
    return fasta(text) if form == "fasta" else sdf(text)


def _parquet(data: bytes, label: str) -> pl.DataFrame:
    """Raises InputError for a damaged file."""
    try:
        try:
            # By Arrow: polars panics on some damaged files, which is no exception and writes to the terminal.
            return pl.read_parquet(io.BytesIO(data), use_pyarrow=True)
        except pyarrow.ArrowNotImplementedError:  # a type that only polars has
            return pl.read_parquet(io.BytesIO(data))
    except (
        pl.exceptions.PolarsError,
        pl.exceptions.PanicException,
        pyarrow.ArrowException,
        OSError,
        ValueError,
    ) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{label} is no readable Parquet file ({reason}): write it again.") from None
