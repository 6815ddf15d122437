"""Mutations as text (`A24G:K31R`, counted from 1), and whether they are counted as the sequences are."""

import re
from collections.abc import Iterable, Sequence

import numpy as np

from isotrace.base.errors import InputError
from isotrace.datasets.reading.cells import is_missing
from isotrace.domains.domain import Reading
from isotrace.subjects.subject import Subject

SHIFTS = range(-5, 6)
_MUTATION = re.compile(r"([A-Z])(\d{1,9})([A-Z])", re.ASCII)
_ENOUGH = 0.9  # of the rows fit a way to count that is meant; a few letters agree by accident


def mutations(cell: object) -> list[tuple[str, int, str]]:
    """(letter before, site from 1, letter after). Raises InputError for other text, and a site that changes twice."""
    if is_missing(cell):
        raise InputError("it names no mutation")
    found = []
    for part in re.split(r"[:,;\s]+", str(cell).strip()):
        match = _MUTATION.fullmatch(part)
        if match is None:
            raise InputError(f"mutation {part!r} is none of this sequence: write A24G, counted from 1")
        found.append((match[1], int(match[2]), match[3]))
    sites = [site for _, site, _ in found]
    if twice := next((site for site in sites if sites.count(site) > 1), None):
        raise InputError(f"mutations {str(cell).strip()!r} change residue {twice} twice: one residue cannot become two")
    return found


def swaps(subject: Subject, ids: np.ndarray, reading: Reading, cell: object) -> tuple[tuple[int, int, int], ...]:
    """(token position, token id before, after) of every mutation. Raises InputError for one that does not fit."""
    token_of = {element: place for place, part in enumerate(reading.elements) for element in part}
    found = []
    for before, site, after in mutations(cell):
        if site - 1 not in token_of:
            raise InputError(f"mutation {before}{site}{after} is none of this sequence: its residues count from 1")
        place = token_of[site - 1]
        if subject.token_id(before) != ids[place]:
            stands = reading.text[site - 1]
            raise InputError(f"mutation {before}{site}{after} does not fit: {stands} stands there")
        found.append((place, subject.token_id(before), subject.token_id(after)))
    return tuple(found)


def check_numbering(rows: Iterable[tuple[str, object]]) -> None:
    """`rows`: sequences with their cells. Raises InputError where most do not fit, or where counting differently would
    fit nearly all, and names what fits: a shift, or that the sequences are the mutated ones."""
    parsed: list[tuple[str, Sequence[tuple[str, int, str]]]] = []
    n = 0
    for text, cell in rows:
        n += not is_missing(cell)
        try:
            parsed.append((text, mutations(cell)))
        except InputError:
            continue  # a reject of its own

    def fit(shift: int, which: int) -> int:
        return sum(
            all(0 < one[1] + shift <= len(text) and text[one[1] + shift - 1] == one[which] for one in found)
            for text, found in parsed
        )

    if (own := fit(0, 0)) == n:
        return
    mutated = fit(0, 2)
    shift = max(SHIFTS, key=lambda d: (fit(d, 0), -abs(d)))
    best = fit(shift, 0)
    if max(best, mutated) > own and (max(best, mutated) >= _ENOUGH * n or 2 * own < n):
        if mutated > best:
            way = f"the letter after the change stands there in {mutated}: give the sequences before the change"
        else:
            way = f"with {shift:+d} added to their positions {best} do: give positions counted from 1 in the sequence"
        raise InputError(f"{own} of {n} rows have mutations that fit their sequence; {way}.")
    if 2 * own < n:
        raise InputError(f"{own} of {n} rows have mutations that fit their sequence: check --mutations and --column.")
