"""Patterns over residues: PROSITE syntax, regular expressions, and the table of known motifs.

PROSITE syntax (Bairoch 1991): elements joined by `-`; a residue, `x` for any, `[ST]` for one of, `{P}` for none of;
each may carry `(n)` or `(n,m)`; `<` before the first element and `>` after the last pin the ends of the chain, and
`[G>]` means the residue or the end. A full stop at the end is ignored.
"""

import re
from collections.abc import Iterator
from functools import cache

from isotrace.base.errors import InputError
from isotrace.base.files import shipped_rows
from isotrace.domains.domain import regular_expression

_ELEMENT = re.compile(r"(?:(x)|([A-Z])|\[([A-Z]+)(>?)\]|\{([A-Z]+)\})(?:\(([0-9]{1,9})(?:,([0-9]{1,9}))?\))?")


def matches(kind: str, pattern: str, sequence: str) -> list[range]:
    """Residues, from 0, of every match that covers any.

    `regex`: Python's, matches do not overlap. `prosite`: one match from every start, its repeats as long as they can
    be, so matches may overlap. Raises InputError for a pattern that cannot be compiled and for any other kind.
    """
    if kind not in ("regex", "prosite"):
        raise InputError(f"a protein has no {kind!r} patterns: give regex or prosite.")
    compiled = _prosite(pattern) if kind == "prosite" else regular_expression(pattern)
    group = 1 if kind == "prosite" else 0
    return [range(*found.span(group)) for found in compiled.finditer(sequence) if found.end(group) > found.start(group)]


@cache
def _prosite(pattern: str) -> re.Pattern[str]:
    # A look-ahead consumes nothing, which is what lets matches overlap.
    return re.compile(f"(?=({''.join(_elements(pattern))}))")


def _elements(pattern: str) -> Iterator[str]:
    body = pattern.strip().removesuffix(".")
    if body.startswith("<"):
        yield r"\A"
    for element in body.removeprefix("<").removesuffix(">").split("-"):
        found = _ELEMENT.fullmatch(element)
        if not found:
            raise InputError(
                f"{pattern!r} is no PROSITE pattern: {element!r} is not an element such as x, [ST], {{P}}."
            )
        anything, letter, some, or_end, none, low, high = found.groups()
        residue = "[A-Z]" if anything else letter or (f"[{some}]" if some else f"(?![{none}])[A-Z]")
        if low and high and int(high) < int(low):
            raise InputError(f"{pattern!r} is no PROSITE pattern: {element!r} repeats from {low} to {high} times.")
        times = f"{{{low},{high}}}" if high else f"{{{low}}}" if low else ""
        yield rf"(?:(?:{residue}){times}|\Z)" if or_end else f"(?:{residue}){times}"
    if body.endswith(">"):
        yield r"\Z"


def known_motifs() -> dict[str, str]:
    """Name → PROSITE pattern, of motifs.csv, where the publication of each is named."""
    rows = shipped_rows("isotrace.domains.protein.vocabulary", "motifs.csv")
    return {row["name"]: row["pattern"] for row in rows}
