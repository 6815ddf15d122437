"""Rules of which the atoms are known: what decides the label is planted, so the right picture is known too.

Molecules are drawn so that the cells of a rule (with and without each motif) are equally frequent: a decoy then says
nothing about the label.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from rdkit import Chem

Atoms = frozenset[int]
NONE: Atoms = frozenset()


@dataclass(frozen=True)
class Rule:
    """`cell(mol)`: which of the cells that are drawn equally often, None where the rule does not ask about it.
    `positive`: the cells with label 1. `truth`, `decoy`: the atoms that decide, and those that only seem to."""

    name: str
    about: str
    cell: Callable[[Chem.Mol], int | None]
    positive: tuple[int, ...]
    truth: Callable[[Chem.Mol], Atoms]
    decoy: Callable[[Chem.Mol], Atoms] | None = None


ACID, CARBONYL = "[CX3](=O)[OX2H1]", "[CX3]=O"
SULFONYL, AMIDE = "[SX4](=O)=O", "[CX3](=O)[NX3]"
HALOGEN, AMINE = "[F,Cl,Br,I]", "[NX3;!$(N-[C,S]=[O,S,N]);!$(N-c)][#6]"
NEAR = 3


@cache
def _pattern(smarts: str) -> Chem.Mol:
    return Chem.MolFromSmarts(smarts)


def matches(mol: Chem.Mol, smarts: str) -> tuple[tuple[int, ...], ...]:
    return mol.GetSubstructMatches(_pattern(smarts))


def atoms_of(*motifs: str) -> Callable[[Chem.Mol], Atoms]:
    return lambda mol: frozenset(atom for smarts in motifs for match in matches(mol, smarts) for atom in match)


def has(*motifs: str) -> Callable[[Chem.Mol], int]:
    """The number of the cell: one binary digit for each motif, the first the highest."""

    def cell(mol: Chem.Mol) -> int:
        number = 0
        for smarts in motifs:
            number = 2 * number + bool(matches(mol, smarts))
        return number

    return cell


def counts(smarts: str, least: int) -> Callable[[Chem.Mol], int | None]:
    """1 from `least` matches on, 0 with one less."""

    def cell(mol: Chem.Mol) -> int | None:
        n = len(matches(mol, smarts))
        return 1 if n >= least else 0 if n == least - 1 else None

    return cell


def closest(mol: Chem.Mol, first: str, second: str) -> tuple[int, Atoms] | None:
    """(bonds between the leading atoms of the closest matches of two motifs, the atoms of all matches so close)."""
    distances = Chem.GetDistanceMatrix(mol)
    found = [
        (int(distances[a[0], b[0]]), frozenset((*a, *b)))
        for a in matches(mol, first)
        for b in matches(mol, second)
        if a[0] != b[0]
    ]
    if not found:
        return None
    least = min(d for d, _ in found)
    return least, frozenset(atom for d, atoms in found if d <= max(least, NEAR) for atom in atoms)


def near(first: str, second: str) -> Callable[[Chem.Mol], int | None]:
    def cell(mol: Chem.Mol) -> int | None:
        found = closest(mol, first, second)
        return None if found is None else int(found[0] <= NEAR)

    return cell


def near_atoms(first: str, second: str) -> Callable[[Chem.Mol], Atoms]:
    return lambda mol: NONE if (found := closest(mol, first, second)) is None else found[1]


RULES = (
    Rule("motif", "a carboxylic acid", has(ACID), (1,), atoms_of(ACID)),
    Rule("and", "a carbonyl and a halogen", has(CARBONYL, HALOGEN), (3,), atoms_of(CARBONYL, HALOGEN)),
    Rule("or", "a carbonyl or a halogen", has(CARBONYL, HALOGEN), (1, 2, 3), atoms_of(CARBONYL, HALOGEN)),
    Rule("decoy", "a sulfonyl; an amide as often", has(SULFONYL, AMIDE), (2, 3), atoms_of(SULFONYL), atoms_of(AMIDE)),
    Rule("count", "two carbonyls or more, against one", counts(CARBONYL, 2), (1,), atoms_of(CARBONYL)),
    Rule("distance", f"two halogens within {NEAR} bonds, against farther", near(HALOGEN, HALOGEN), (1,),
         near_atoms(HALOGEN, HALOGEN)),
    Rule("far distance", f"an amine and a carbonyl within {NEAR} bonds, against farther", near(AMINE, CARBONYL), (1,),
         near_atoms(AMINE, CARBONYL)),
)  # fmt: skip


def drawn(cells: np.ndarray, part: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of `part` (bool), as many of each cell, at most `most`; −1 belongs to no cell."""
    rows = [rng.permutation(np.nonzero((cells == c) & part)[0]) for c in np.unique(cells[cells >= 0])]
    n = min(most, *(len(r) for r in rows)) if len(rows) > 1 else 0
    return np.concatenate([r[:n] for r in rows]) if rows else np.zeros(0, int)
