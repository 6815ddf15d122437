"""Concepts a user brings: patterns to look for, and labels of tokens or whole sequences.

A concept file is CSV or TSV; its header says which of two forms it has, and nothing is guessed from its cells:

- pattern file: `name,group,kind,pattern`; every line is a token concept with one instance per match.
- label file: a column `smiles` or `sequence`, and label columns called `kind:NAME` (kinds: `label_cells.KINDS`).

The same declarations name columns of the data: `kind:column` or `kind:column:name`. See docs/annotation-files.md.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from rdkit import Chem, rdBase

from isotrace.base.errors import InputError
from isotrace.base.files import read_text, refuse_workbook
from isotrace.datasets.label_cells import LabelColumn, Record, data_cells, labelling
from isotrace.datasets.reading.cells import NAME_COLUMNS, SEQUENCE_COLUMNS, column_of, is_missing, listed
from isotrace.datasets.reading.delimited import table as delimited
from isotrace.domains.domain import Concept, Domain, Labels, Reading

PATTERN_COLUMNS = ["name", "group", "kind", "pattern"]


@dataclass(frozen=True, eq=False)
class ConceptSource:
    """`concepts`, and `label(index, reading)`: what row `index` of the data, read as `reading`, carries of them.

    `label` raises InputError with the reason if the row must not be used: its label is missing where that cannot be
    told from "no", damaged, or contradicts another row. `maps` holds the atom-mapped text of every sequence that has
    one (kind `maps`), or is None if none was asked for.
    """

    concepts: tuple[Concept, ...]
    label: Callable[[int, Reading], Labels]
    maps: dict[str, str] | None = None


def read_concept_file(path: Path | str, domain: Domain) -> ConceptSource:
    """The concepts of a pattern file or a label file (see the module).

    Raises InputError, with the line, for a file that cannot be read, another header, a pattern that cannot be compiled
    (`smarts`, `regex`), a name given twice, or a column with more than `label_cells.MAX_VALUES` values. What is wrong
    with single labels is raised by `ConceptSource.label`; so is a pattern that only the domain can judge, with file
    and line, and then for every sequence.
    """
    path = Path(path)
    head, rows = _load(path)
    if head == PATTERN_COLUMNS:
        return _patterns(path, rows, domain)
    text = [i for i, name in enumerate(head) if name.lower() in SEQUENCE_COLUMNS]
    if len(text) != 1:
        raise InputError(
            f"{path}: line 1 must be {','.join(PATTERN_COLUMNS)} (patterns), or hold one column smiles or sequence and "
            f"label columns kind:NAME (labels), not {listed(head)}."
        )
    used = [i for i, name in enumerate(head) if i != text[0] and name.lower() not in NAME_COLUMNS]
    try:
        columns = [LabelColumn.parse(head[i]) for i in used]
    except InputError as error:
        raise InputError(f"{path}, line 1: {error}") from None
    if not columns or not rows:
        raise InputError(f"{path} holds no {'sequence' if columns else 'label column kind:NAME'}: add at least one.")
    rows = [(line, cells) for line, cells in rows if any(cell.strip() for cell in cells)]
    if lost := next((line for line, cells in rows if is_missing(cells[text[0]])), None):
        raise InputError(f"{path}, line {lost}: labels without a sequence: fill it, or remove the line.")
    records = [Record(f"line {line}", cells[text[0]].strip(), [cells[i] for i in used]) for line, cells in rows]
    concepts, label, maps = labelling(columns, records, path.name, domain)
    return ConceptSource(concepts, lambda index, reading: label(reading.text.strip(), reading), maps)


def label_columns(table: pl.DataFrame, specs: Sequence[str], domain: Domain) -> ConceptSource:
    """The concepts of columns of the data.

    table: as `read_inputs` returns it, with `index` and `sequence`. specs: `kind:column` or `kind:column:name`.
    Raises InputError for an unknown kind or column, and for a `token` column of numbers: text that was read as
    numbers has lost its leading zeros.
    """
    columns = [LabelColumn.parse(spec) for spec in specs]
    cells = []
    for column in columns:
        cells.append(data_cells(table[column_of(table, column.column, "--label")], column))
    texts = dict(zip(table["index"].to_list(), table["sequence"].to_list(), strict=True))
    records = [
        Record(f"row {index}", text, [cell[i] for cell in cells]) for i, (index, text) in enumerate(texts.items())
    ]
    concepts, label, maps = labelling(columns, records, "the data", domain)
    return ConceptSource(concepts, lambda index, reading: label(texts[index], reading), maps)


def _load(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and (line number, cells) of every line that is not blank."""
    name = path.name.lower().removesuffix(".gz")
    refuse_workbook(path)
    if not name.endswith((".csv", ".tsv")):
        raise InputError(f"{path} is no concept file: rename it to end in .csv or .tsv (or .csv.gz, .tsv.gz).")
    text = read_text(path)
    if not text.strip():
        raise InputError(f"{path} is empty: line 1 must be {','.join(PATTERN_COLUMNS)}, or hold label columns.")
    head, records, _ = delimited(text, "\t" if name.endswith(".tsv") else ",", _fits, str(path))
    rows = []
    for line, cells in records:
        if isinstance(cells, str):
            raise InputError(f"{path}, line {line}: {cells}: check the quotation marks.")
        if cells and len(cells) != len(head):
            fault = f"{len(cells)} fields instead of {len(head)}: quote cells that hold the separator."
            raise InputError(f"{path}, line {line}: {fault}")
        if cells:
            rows.append((line, cells))
    _unique(head, f"line 1 of {path}")
    return head, rows


def _fits(head: list[str]) -> bool:
    return head == PATTERN_COLUMNS or any(name.lower() in SEQUENCE_COLUMNS for name in head)


def _unique(names: Sequence[str], where: str) -> None:
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(f"{where}: {twice[0]!r} is given twice: rename one.")


def _patterns(path: Path, rows: list[tuple[int, list[str]]], domain: Domain) -> ConceptSource:
    concepts, searches = [], []
    for line, cells in rows:
        name, group, kind, pattern = (cell.strip() for cell in cells)
        where = f"{path}, line {line}: pattern {pattern!r}"
        if not (name and group and kind and pattern):
            raise InputError(f"{where}: an empty cell: fill name, group, kind and pattern.")
        if fault := _fault(kind, pattern):
            raise InputError(f"{where}: {fault}")
        concepts.append(Concept(name, group, "token"))
        searches.append((kind, pattern, where))
    if not concepts:
        raise InputError(f"{path} holds no pattern: add at least one line.")
    _unique([concept.name for concept in concepts], str(path))

    def label(index: int, reading: Reading) -> Labels:
        instances = []
        for concept, (kind, pattern, where) in enumerate(searches):
            try:
                found = domain.match(kind, pattern, reading)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            instances += [(concept, tokens) for tokens in dict.fromkeys(map(tuple, found)) if tokens]
        return Labels(tuple(instances), np.full(len(concepts), np.nan))

    return ConceptSource(tuple(concepts), label)


def _fault(kind: str, pattern: str) -> str | None:
    """Why it cannot be compiled, for the kinds whose syntax is the same in every domain."""
    if kind == "regex":
        try:
            re.compile(pattern)
        except re.error as error:
            return f"no regular expression ({error}): correct it."
    if kind == "smarts":
        with rdBase.BlockLogs():
            if Chem.MolFromSmarts(pattern) is None:
                return "RDKit cannot read it as SMARTS: correct it."
    return None
