"""Atom maps: from a mapped copy of a reaction to its atoms, and what changes between the sides.

1. `mapping` finds every component of the reaction among those of its mapped copy, by canonical SMILES, and reads off
   the map number of each atom along the canonical order of writing. Equal atoms of one molecule may swap numbers,
   which changes nothing that is said here.
2. `changes` compares the two ends of every map number: hydrogens, charge, and bonds to which partners of which order.
"""

from collections import defaultdict
from dataclasses import dataclass

from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.domains.molecule.spelling import fragments
from isotrace.domains.molecule.vocabulary.scaffolds import connected
from isotrace.domains.reaction.tokens import Reaction, Side, parse_reaction


@dataclass(frozen=True)
class Changes:
    """Atoms are those of the reaction. All tuples are ascending.

    partner: of every atom on one side with an atom on the other, that atom.
    centre: atoms with a partner, whose hydrogen count, charge or bonds differ from the partner's.
    leaving: connected parts of reactants that give atoms to a product, without a partner.
    broken, formed, altered: pairs of bonded atoms: bonds between reactant atoms that are not between their partners,
        bonds of products that are new, and bonds of either side whose order differs. A bond between two atoms that
        both lack a partner is in none.
    contributing: components of reactants and reagents with at least one partner.
    """

    partner: dict[int, int]
    centre: tuple[int, ...]
    leaving: tuple[tuple[int, ...], ...]
    broken: tuple[tuple[int, int], ...]
    formed: tuple[tuple[int, int], ...]
    altered: tuple[tuple[int, int], ...]
    contributing: tuple[int, ...]


def mapping(reaction: Reaction, mapped: str) -> tuple[int, ...]:
    """Map number of every atom, 0 where it has none; `mapped` is the same reaction with atom maps (`[CH3:1]`).

    Reactants and reagents count as one side, for map files disagree on which is which; components may stand in any
    order, and ones that the reaction lacks are ignored. Raises InputError if `mapped` is no reaction, lacks a
    component of `reaction`, or gives one number to two atoms of a side.
    """
    other = parse_reaction(mapped)
    numbers = [atom.GetAtomMapNum() for atom in other.mol.GetAtoms()]
    offered: dict[tuple[bool, str], list[tuple[int, ...]]] = defaultdict(list)
    for (part, atoms), side in zip(fragments(other.mol), other.sides, strict=True):
        text, order = _canonical(part)
        offered[side == "product", text].append(tuple(numbers[atoms[i]] for i in order))
    # Of equal molecules those with maps come first: a second equivalent that stays over is written behind.
    for same in offered.values():
        same.sort(key=lambda found: not any(found))
    result = [0] * reaction.mol.GetNumAtoms()
    for (part, atoms), side in zip(fragments(reaction.mol), reaction.sides, strict=True):
        text, order = _canonical(part)
        left = offered[side == "product", text]
        if not left:
            raise InputError(f"the mapped reaction lacks {text!r} among its {side}s: map the same reaction.")
        for i, number in zip(order, left.pop(0), strict=True):
            result[atoms[i]] = number
    return tuple(result)


def changes(reaction: Reaction, numbers: tuple[int, ...]) -> Changes:
    """What changes, given the map number of every atom. Raises InputError if a number stands twice on one side, or
    if no number stands on both."""
    sides = reaction.side_of()
    before = _by_number(numbers, sides, product=False)
    after = _by_number(numbers, sides, product=True)
    both = before.keys() & after.keys()
    if not both:
        raise InputError("no atom-map number stands on both sides of the mapped reaction: map it, `[CH3:1]`.")
    partner = {before[n]: after[n] for n in both} | {after[n]: before[n] for n in both}
    bonds = {_pair(b.GetBeginAtomIdx(), b.GetEndAtomIdx()): b.GetBondType() for b in reaction.mol.GetBonds()}
    centre, gone, altered = set[int](), set[tuple[int, int]](), set[tuple[int, int]]()
    for (i, j), order in bonds.items():
        if i not in partner and j not in partner:
            continue
        there = bonds.get(_pair(partner[i], partner[j])) if i in partner and j in partner else None
        if there is None:
            gone.add((i, j))
        elif there != order:
            altered.add((i, j))
        if there != order:
            centre.update(a for a in (i, j) if a in partner)
            # A bond that is missing on the other side changes the atoms there as well.
            centre.update(partner[a] for a in (i, j) if a in partner)
    for one, other in partner.items():
        a, b = reaction.mol.GetAtomWithIdx(one), reaction.mol.GetAtomWithIdx(other)
        if (a.GetTotalNumHs(True), a.GetFormalCharge()) != (b.GetTotalNumHs(True), b.GetFormalCharge()):
            centre.add(one)
    giving = [i for i, part in enumerate(reaction.components) if any(a in partner for a in part)]
    contributing = tuple(i for i in giving if reaction.sides[i] != "product")
    left_over = {a for i in contributing for a in reaction.components[i] if a not in partner}
    return Changes(
        partner,
        tuple(sorted(centre)),
        connected(reaction.mol, left_over),
        tuple(sorted(pair for pair in gone if sides[pair[0]] != "product")),
        tuple(sorted(pair for pair in gone if sides[pair[0]] == "product")),
        tuple(sorted(altered)),
        contributing,
    )


def _by_number(numbers: tuple[int, ...], sides: list[Side], *, product: bool) -> dict[int, int]:
    found: dict[int, int] = {}
    for atom, (number, side) in enumerate(zip(numbers, sides, strict=True)):
        if number and (side == "product") == product:
            if number in found:
                where = "products" if product else "reactants"
                raise InputError(f"atom-map number {number} stands twice among the {where}: give each atom its own.")
            found[number] = atom
    return found


def _canonical(part: Chem.Mol) -> tuple[str, list[int]]:
    """Canonical SMILES without atom maps, and the atoms in the order it writes them."""
    plain = Chem.Mol(part)
    for atom in plain.GetAtoms():
        atom.SetAtomMapNum(0)
    text = Chem.MolToSmiles(plain)
    return text, list(plain.GetPropsAsDict(True, True)["_smilesAtomOutputOrder"])


def _pair(i: int, j: int) -> tuple[int, int]:
    return (i, j) if i < j else (j, i)
