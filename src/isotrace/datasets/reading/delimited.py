"""Delimited text → its header, and per row cells or what is wrong with it. Inputs and concept files read it alike."""

import csv
import io
import re
from collections.abc import Callable, Iterator

from isotrace.base.errors import InputError

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
_HEAD = 2**20  # characters that the header is looked for in
_ASIDE = re.compile(r"sep=([,;|\t ])(\r\n|\r|\n)", re.IGNORECASE)  # a first line by which spreadsheets say it
_LINE_END = re.compile(r"\r\n|\r|\n")

Record = tuple[int, list[str] | str]
"""Line of the file, from 1; cells, none for a blank line, or the fault."""


def records(text: str, separator: str) -> Iterator[Record]:
    """Of comma-separated text a cell may stand in quotation marks, hold the separator and line ends, and a faulty row
    does not stop the rest. In tab-separated text a quotation mark is a character, unless every cell of the header
    stands in quotation marks, as R writes tables."""
    if separator == "\t" and not all(re.fullmatch(r'"[^"]*"', cell) for cell in _line(text).split("\t")):
        yield from ((n, line.split("\t") if line else []) for n, line in enumerate(_LINE_END.split(text), 1))
        return
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    while True:
        first = reader.line_num + 1
        try:
            yield first, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # An open quotation mark swallows the lines after it: say which.
            yield first, f"lines {first} to {reader.line_num} cannot be read: {error}"


def table(
    text: str, separator: str, fits: Callable[[list[str]], bool], label: str
) -> tuple[list[str], list[Record], str]:
    """(header, rows without blank ones at the end, `label`). Where the header does not fit, another separator under
    which alone it does, or under which alone it has columns, is taken, and added to the label: spreadsheets of many
    countries write semicolons into CSV files.

    Raises InputError for an unreadable header, and for one that holds several separators and fits none.
    """
    skipped = 0
    if given := _ASIDE.match(text):
        separator, text, skipped = given[1], text[given.end() :], 1
    heads = {mark: _head(text[:_HEAD], mark) for mark in dict.fromkeys([separator, *SEPARATORS])}
    head = heads[separator]
    if head is None or not fits(head):
        others = {mark: found for mark, found in heads.items() if mark != separator and found and len(found) > 1}
        taken = [mark for mark, found in others.items() if fits(found)]
        if not taken and len(head or ()) < 2:
            taken = [*others]
        if len(taken) == 1:
            separator, head = taken[0], others[taken[0]]
            label = f"{label} (separated by {SEPARATORS[separator]})"
        elif others and (len(head or ()) < 2 or fits([name.strip() for name in re.split("[,\t;|]", _line(text))])):
            says = " and ".join(name for mark, name in SEPARATORS.items() if mark in _line(text))
            raise InputError(f"line 1 of {label} is separated by {says}: save it with one separator.")
        elif head and len(head) == 1 and fits(head[0].split()):
            raise InputError(f"{label} seems to be separated by blanks: save it with commas, or with tabs as .tsv.")
    if not head:
        raise InputError(f"{label} has no readable header: name the columns in line 1.")
    _, *rows = records(text, separator)
    while rows and rows[-1][1] == []:
        rows.pop()
    return head, [(line + skipped, cells) for line, cells in rows], label


def _line(text: str) -> str:
    return _LINE_END.split(text, maxsplit=1)[0]


def _head(text: str, separator: str) -> list[str] | None:
    _, cells = next(records(text, separator), (1, []))
    return None if isinstance(cells, str) else [name.strip() for name in cells]
