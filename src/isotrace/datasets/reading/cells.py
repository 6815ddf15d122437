"""What single cells and column names say, wherever they stand: labels, groups, parts, sequences, concept files.

The words for a missing value are listed here and nowhere else.
"""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

import numpy as np
import polars as pl

from isotrace.base.errors import InputError

SEQUENCE_COLUMNS = ("smiles", "sequence")
NAME_COLUMNS = ("name", "id")
# What spreadsheets, pandas, R and databases write for "no value", in any case. As proteins, NA and NULL could be read.
MISSING = frozenset(
    ["", "na", "n/a", "n.a.", "#na", "#n/a", "#n/a n/a", "<na>", "nan", "-nan", "null", "(null)", "<null>", "none",
     "<none>", "\\n", "-", "--", "---", "–", "—", "?", "??", ".", "#null!", "#value!", "#ref!", "#name?", "#num!",
     "#div/0!", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"]
)  # fmt: skip
# Among words these are a class to one table (none, mild, severe) and no label to another.
OPEN = frozenset(
    ["none", "unknown", "missing", "undefined", "undetermined", "n.d.", "n.d", "nd", "n/d", "n.t.", "tbd",
     "not determined", "not tested", "not measured", "not available", "not known"]
)  # fmt: skip
MOST_NAMES = 30  # in a message
_SIGNS = re.compile(r"\++|\+/-|±")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_ALMOST = (
    (re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+", re.ASCII),
     "holds a comma: write a decimal point, and nothing between thousands"),
    (re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?", re.ASCII), "is written with a decimal comma: write a point"),
    (re.compile(r"[+-]?\d{1,3}(([,.' \u00a0\u202f])\d{3})(\2\d{3})*([.,]\d+)?", re.ASCII),
     "is written with separators between thousands: leave them out, and write a decimal point"),
    (re.compile(r"(>|<|≥|≤|⩾|⩽|~|≈|=)=?\s*[+-]?[\d.,]+([eE][+-]?\d+)?", re.ASCII),
     "is a bound, no number: empty the cell, or write the number that is to count"),
    (re.compile(r"[−–‐‑][\d.,]+([eE][+−-]?\d+)?"), "is written with another sign than -: write -"),
    (re.compile(r"[+-]?[\d.,]+\s*(±|\+/-)\s*[\d.,]+"), "is a number with its error: write the number alone"),
    (re.compile(r"[+-]?[\d.,]+(\s*%|\s+[^\W\d][\w/%^²³-]*)"), "carries a unit: write the number alone"),
)  # fmt: skip


def is_missing(cell: object) -> bool:
    """Does it stand for no value: None, a blank, NaN, or a word of MISSING?"""
    return cell is None or str(cell).strip().lower() in MISSING


def are_missing(cells: Sequence[object], what: str, *, classes: bool = False) -> list[bool]:
    """The same of a column of labels, where `-` beside `+` is a label. Raises InputError where it is open if a word
    of OPEN is a class: beside other words, and, in a column of `classes`, beside numbers too unless it is of MISSING.
    `what` names the column."""
    texts = {"" if cell is None else str(cell).strip() for cell in cells}
    known = {text for text in texts if text.lower() not in MISSING}
    labels = [text for text in known if text.lower() not in OPEN]
    beside_words = 2 * sum(bool(why_no_number(text)) for text in labels) > len(labels)
    unsure = OPEN if beside_words else OPEN - MISSING if classes and labels else frozenset()
    if found := sorted(text for text in texts if text.lower() in unsure):
        raise InputError(
            f"{what} holds {found[0]!r}, which may be a class or stand for no label: empty those cells to leave their "
            "rows out, or call the class otherwise."
        )
    signs = any(_SIGNS.fullmatch(text) for text in known)
    return [is_missing(cell) and not (signs and str(cell).strip() in ("-", "--", "---")) for cell in cells]


def why_no_number(text: str) -> str | None:
    """None for a finite number with a decimal point, else what is wrong with it."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return None if math.isfinite(float(text)) else "is not finite"
    if text.lower().lstrip("+-") in ("inf", "infinity", "nan"):
        return "is not finite"
    return next((why for pattern, why in _ALMOST if pattern.fullmatch(text)), "is no number")


def is_almost_number(text: str) -> bool:
    """A number, or meant as one: with a decimal comma, as a bound, …"""
    return why_no_number(text) != "is no number"


def number(text: str) -> float:
    """Raises InputError, quoting it, for what is no finite number with a decimal point."""
    if why := why_no_number(text):
        raise InputError(f"{text.strip()!r} {why}")
    return float(text)


def typed(series: pl.Series) -> pl.Series:
    """Text as Int64 or Float64 if every filled cell is a number, and none a string of digits that would be lost as one:
    with a leading zero, or longer than Int64 holds (labels of residues are written so)."""
    text = series.str.strip_chars()
    text = text.set(text == "", None)
    long = text.str.contains(r"^[+-]?\d+$") & text.cast(pl.Int64, strict=False).is_null()
    if (text.str.contains(r"^[+-]?0\d") | long).any():
        return series
    for dtype in (pl.Int64, pl.Float64):
        cast = text.cast(dtype, strict=False)
        if cast.null_count() == text.null_count() < len(series):
            return cast
    return series


def free_names(names: Iterable[str], taken: Collection[str]) -> dict[str, str]:
    """The name each gets: its own, or where that is `taken`, with `input_` before it until it is free."""
    names = list(names)
    found: dict[str, str] = {}
    for name in names:
        free = name
        while free in taken or free in found.values() or (free != name and free in names):
            free = f"input_{free}"
        found[name] = free
    return found


def plain(cell: object) -> str | None:
    """A cell of a column as text. Columns of whole numbers with gaps become floats in many tables; 3.0 is still 3."""
    if cell is None:
        return None
    return str(int(cell)) if isinstance(cell, float | Decimal) and cell % 1 == 0 else str(cell)


def column_of(table: pl.DataFrame, wanted: str, option: str) -> str:
    """The column of `table`, as `read_inputs` returns it, that a user calls `wanted`, whose `smiles` or `id` it is too.

    Raises InputError that says what may be meant and lists the user's own columns."""
    for ours, theirs in (("sequence", SEQUENCE_COLUMNS), ("name", NAME_COLUMNS)):
        if wanted not in table.columns and wanted.lower() in theirs and ours in table.columns:
            return ours
    if wanted in table.columns:
        return wanted
    own = [name for name in table.columns if name not in ("index", "name", "sequence", "original")]
    raise InputError(f"the data have no column {wanted!r} for {option}: {meant(wanted, own)}.")


def meant(wanted: str, names: Sequence[str]) -> str:
    """`did you mean …? give one of …`."""
    lower = {name.lower(): name for name in reversed(names)}
    close = get_close_matches(wanted.strip().lower(), lower, n=1)
    said = f"give one of {listed(names)}" if names else "it has none beside sequences and names"
    return f"did you mean {lower[close[0]]!r}? {said}" if close else said


def listed(names: Sequence[str]) -> str:
    """Names in one line, the first of many; headers of spreadsheets hold line ends."""
    said = ", ".join(shown(" ".join(name.split())) for name in names[:MOST_NAMES])
    return f"{said} and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else said


def damage(cells: Sequence[str]) -> str | None:
    """Why text of these cells cannot be used: bytes that were no UTF-8, or NUL."""
    text = "".join(cells)
    try:
        text.encode()
    except UnicodeEncodeError:
        return "the row is not UTF-8"
    return "the row holds a NUL character" if "\0" in text else None


def shown(text: str) -> str:
    """`text` with undecoded bytes as `\\xff`, so that it can be printed and stored."""
    text = re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", text)
    return text.encode("utf-8", "backslashreplace").decode()


def of_objects(name: str, cells: Sequence[Any]) -> pl.Series:
    """A column of Python objects: of one type of polars if there is one for all of them, else of `Object`."""
    cells = [cell.item() if isinstance(cell, np.generic) else cell for cell in cells]
    kinds = {type(cell) for cell in cells if cell is not None}
    try:
        if len(kinds) < 2:
            return pl.Series(name, cells, strict=True)
        if kinds == {int, float}:
            return pl.Series(name, cells, pl.Float64, strict=False)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
        pass  # no type of polars
    return pl.Series(name, cells, dtype=pl.Object)
