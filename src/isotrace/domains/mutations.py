"""Mutations as text: `A24G:K31R`, sites counted from 1, of one sequence."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from isotrace.base.errors import InputError
from isotrace.domains.domain import Domain
from isotrace.domains.protein.sequence import STANDARD

_MUTATION = re.compile(r"([A-Z])(\d{1,9})([A-Z])", re.ASCII)


class Mutation(NamedTuple):
    """`site` counts from 1."""

    before: str
    site: int
    after: str

    def __str__(self) -> str:
        return f"{self.before}{self.site}{self.after}"


def mutations(text: str) -> list[Mutation]:
    """Raises InputError for other text, a site that changes twice, and what changes nothing."""
    found = []
    for part in re.split(r"[:,;\s]+", text.strip()):
        match = _MUTATION.fullmatch(part)
        if match is None:
            raise InputError(f"mutation {part!r} is none of this sequence: {_advice(part)}")
        if match[1] == match[3]:
            raise InputError(f"mutation {part!r} changes nothing")
        found.append(Mutation(match[1], int(match[2]), match[3]))
    sites = [one.site for one in found]
    if twice := next((site for site in sites if sites.count(site) > 1), None):
        raise InputError(f"mutations {text.strip()!r} change residue {twice} twice: one residue cannot become two")
    return found


def residue_changes(text: str) -> list[Mutation]:
    """As `mutations`; raises InputError also for letters that are no amino acid of the twenty."""
    changes = mutations(text)
    for one in changes:
        if odd := {one.before, one.after} - set(STANDARD):
            raise InputError(f"mutation {one} is of {min(odd)}, which is none of the twenty amino acids")
    return changes


def mutated(sequence: str, changes: Iterable[Mutation]) -> str:
    """`sequence`, a letter a site, after `changes`. Raises InputError for one that does not fit it."""
    letters = list(sequence)
    for one in changes:
        if not 0 < one.site <= len(letters):
            raise InputError(f"mutation {one} is none of this sequence: its residues count from 1 to {len(letters)}")
        if sequence[one.site - 1] != one.before:
            raise InputError(f"mutation {one} does not fit: {sequence[one.site - 1]} stands there")
        letters[one.site - 1] = one.after
    return "".join(letters)


def variant(domain: Domain, sequence: str, asked: str) -> str:
    """The residues of `sequence` after what `mutation:A24G[:K31R…]` asks. Raises InputError where it does not fit, and
    for a domain of other elements."""
    if domain.element != "residue":
        raise InputError(f"{asked!r} changes residues, and this is of the domain {domain.name}: give B itself.")
    return mutated(domain.same(sequence), residue_changes(asked.partition(":")[2]))


def _advice(part: str) -> str:
    if part.endswith("*"):
        return "* is a stop codon, no residue"
    if part != part.upper() and _MUTATION.fullmatch(part.upper()):
        return f"write {part.upper()}, in capitals"
    return "write A24G, counted from 1"
