"""Mutations in tables (`A24G:K31R`, counted from 1): whether they are counted as the sequences are, and scans, which
measured the mutations of one sequence (deep mutational scans)."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from isotrace.base.errors import InputError
from isotrace.datasets.inputs import rejects_frame
from isotrace.datasets.reading.cells import are_missing, column_of, is_missing, number, plain
from isotrace.domains.domain import Domain
from isotrace.domains.mutations import Mutation, mutated, residue_changes
from isotrace.domains.mutations import mutations as of_text
from isotrace.domains.substitutions import RESIDUES

SHIFTS = range(-5, 6)
_ENOUGH = 0.9  # of the rows fit a way to count that is meant; a few letters agree by accident


def mutations(cell: object) -> list[Mutation]:
    """As `domains.mutations.mutations`, of a cell, which may be empty."""
    if is_missing(cell):
        raise InputError("it names no mutation")
    return of_text(str(cell))


def check_numbering(rows: Iterable[tuple[str, object]], offset: int = 0, advice: str | None = None) -> None:
    """`rows`: sequences with their cells, to whose positions `offset` is added. Raises InputError where most do not
    fit, or where counting differently would fit nearly all, and names what fits: another offset, that the sequences are
    the mutated ones, or both. `advice`: what to do about another offset, which stands there as `{}`."""
    parsed: list[tuple[str, Sequence[Mutation]]] = []
    n = 0
    for text, cell in rows:
        n += not is_missing(cell)
        try:
            parsed.append((text, mutations(cell)))
        except InputError:
            continue  # a reject of its own

    def fit(shift: int, which: int) -> int:
        return sum(
            all(0 < one.site + shift <= len(text) and text[one.site + shift - 1] == one[which] for one in found)
            for text, found in parsed
        )

    if (own := fit(offset, 0)) == n:
        return
    ways = {(shift, which): fit(shift, which) for which in (0, 2) for shift in {*SHIFTS, *_likely(parsed, which)}}
    (shift, which), best = max(ways.items(), key=lambda way: (way[1], way[0][1] == 0, -abs(way[0][0])))
    said = f"{own} of {n} rows have mutations that fit their sequence"
    said += f" with {offset:+d} added to their positions" if offset else ""
    if best > own and (best >= _ENOUGH * n or 2 * own < n < 2 * best):
        added = f"with {shift:+d} added to their positions "
        renumber = (advice or "give positions counted from 1 in the sequence").format(f"{shift:+d}")
        if not which:
            raise InputError(f"{said}; {added}{best} do: {renumber}.")
        before = "give the sequences before the change"
        stands = f"the letter after the change stands there in {best}"
        raise InputError(f"{said}; {added if shift else ''}{stands}: {before}{f', and {renumber}' if shift else ''}.")
    if 2 * own < n:
        raise InputError(f"{said}: check --mutations and the sequences.")


def _likely(parsed: Sequence[tuple[str, Sequence[Mutation]]], which: int) -> Iterator[int]:
    """Shifts, however large, at which the first mutations of most rows would fit."""
    count = Counter(
        place - found[0].site + 1
        for text, found in parsed
        for place, letter in enumerate(text)
        if letter == found[0][which]
    )
    yield from (shift for shift, _ in count.most_common(3))


@dataclass(frozen=True)
class Variant:
    """The rows of a scan that measured the same change, `changes` counted in the sequence; `name`: as the file counts.
    `index` of the first row; `effects` of all."""

    index: int
    name: str
    changes: tuple[Mutation, ...]
    effects: tuple[float, ...]

    @property
    def effect(self) -> float:
        return float(np.mean(self.effects))

    @property
    def sites(self) -> tuple[int, ...]:
        return tuple(one.site for one in self.changes)


@dataclass(frozen=True, eq=False)
class Scan:
    """What was measured of variants of `wild_type`, residues without blanks. `offset`: what is added to the positions
    of the file to count in it."""

    wild_type: str
    label: str
    offset: int
    variants: tuple[Variant, ...]
    rejects: pl.DataFrame
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Design:
    """A sequence of one's own: row `index` of its file, `changes` counted in the wild type, `mutation` the same as the
    scan's file counts."""

    index: int
    name: str | None
    mutation: str
    changes: tuple[Mutation, ...]


def read_scan(
    rows: pl.DataFrame, rejects: pl.DataFrame, wild_type: str, label: str, offset: int, sites: Sequence[int] = ()
) -> Scan:
    """`rows`, as `read_inputs` gives them, with the mutations in the place of the sequence, and what it rejected. Rows
    of the same change are joined. `sites`, as the file counts: then a cell is the letters that stand there (`VDGV`).
    Raises InputError for a missing column, sites that the wild type has not, as `check_numbering`, and where no row can
    be used."""
    column = column_of(rows, label, "--label")
    stands = "".join(_at(wild_type, site, offset) for site in sites)
    if len({*sites}) < len(sites):
        raise InputError(f"--sites {','.join(map(str, sites))} names a site twice: name each once.")
    said = ()
    if not sites:
        check_numbering(((wild_type, cell) for cell in rows["sequence"]), offset, "give --offset {}")
    elif stands not in rows["sequence"].str.strip_chars().unique():
        said = (f"no row holds {stands}, what stands at the sites of the wild type: check --sites and --offset",)
    refused = [(index, text, "it names no mutation") for index, text, _ in rejects.rows()]
    unlabelled = are_missing(rows[column].to_list(), f"column {label!r}")
    found: dict[tuple[Mutation, ...], list[tuple[int, str, float]]] = {}
    for (index, cell, value), absent in zip(
        rows.select("index", "sequence", column).iter_rows(), unlabelled, strict=True
    ):
        try:
            if absent:
                raise InputError(f"it has no label in column {label!r}")
            named = residue_changes(_written(cell, sites, stands) if sites else cell)
            named.sort(key=lambda one: one.site)
            changes = tuple(one._replace(site=one.site + offset) for one in named)
            mutated(wild_type, changes)
            found.setdefault(changes, []).append((index, ":".join(map(str, named)), number(plain(value) or "")))
        except InputError as error:
            refused.append((index, cell, str(error)))
    if not found:
        raise InputError(f"no row can be used{f'; first reason: {refused[0][2]}' if refused else ''}.")
    variants = (
        Variant(same[0][0], same[0][1], changes, tuple(effect for *_, effect in same))
        for changes, same in found.items()
    )
    return Scan(wild_type, label, offset, tuple(variants), rejects_frame(refused), said)


def _at(wild_type: str, site: int, offset: int) -> str:
    if not 0 < site + offset <= len(wild_type):
        first, last = 1 - offset, len(wild_type) - offset
        raise InputError(f"--sites {site} is out of range: the residues of the wild type count from {first} to {last}.")
    return wild_type[site + offset - 1]


def _written(cell: str, sites: Sequence[int], stands: str) -> str:
    """The letters of a cell as mutations of what `stands` at the `sites`."""
    letters = cell.strip()
    if len(letters) != len(sites):
        raise InputError(f"{letters!r} has {len(letters)} letters for {len(sites)} sites")
    if letters == stands:
        raise InputError("it is the wild type, which changes nothing")
    if letters != letters.upper():
        raise InputError(f"write {letters.upper()}, in capitals")
    three = zip(stands, sites, letters, strict=True)
    return ":".join(f"{before}{site}{after}" for before, site, after in three if before != after)


def read_designs(
    rows: pl.DataFrame, rejects: pl.DataFrame, domain: Domain, wild_type: str, offset: int
) -> tuple[tuple[Design, ...], pl.DataFrame]:
    """Designs, each set against the wild type residue by residue, and what is rejected, with the reason. Raises
    InputError where none can be used."""
    found, refused = [], [*rejects.rows()]
    for index, name, text in rows.select("index", "name", "sequence").iter_rows():
        try:
            residues = domain.same(text)
            if len(residues) != len(wild_type):
                raise InputError(
                    f"it has {len(residues)} residues, the wild type {len(wild_type)}: designs change residues, none "
                    "is added or dropped"
                )
            both = enumerate(zip(wild_type, residues, strict=True), start=1)
            changes = tuple(Mutation(a, site, b) for site, (a, b) in both if a != b)
            if odd := [one for one in changes if one.after not in RESIDUES or one.before not in RESIDUES]:
                first = odd[0]._replace(site=odd[0].site - offset)
                raise InputError(f"{first} is of a letter that is none of the twenty amino acids")
            if not changes:
                raise InputError("it is the wild type")
            told = ":".join(str(one._replace(site=one.site - offset)) for one in changes)
            found.append(Design(index, name, told, changes))
        except InputError as error:
            refused.append((index, text, str(error)))
    if not found:
        raise InputError(f"no design of --designs can be used{f'; first reason: {refused[0][2]}' if refused else ''}.")
    return tuple(found), rejects_frame(refused)
