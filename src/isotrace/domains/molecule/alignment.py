"""Two molecules aligned by what they have in common: atoms first, then the tokens that write them.

1. pieces   the maximum common substructure (RDKit rdFMCS: elements, charges and bond orders alike, rings on rings),
            then that of what is left, as long as it has SHARED atoms: a change in the middle leaves both ends common
2. match    of the ways to lay a piece on both molecules the one whose atoms have as many neighbours in either and whose
            order of writing is kept furthest
3. replaced what is left on both sides of the same neighbours is paired in the order of writing, an atom for an atom
4. tokens   an atom's token has the token of its partner; bonds, ring digits, branches and dots behind it have those
            behind its partner that say the same
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from difflib import SequenceMatcher

from rdkit import Chem
from rdkit.Chem import rdFMCS

from isotrace.base.errors import InputError
from isotrace.domains.alignment import SHARED, Alignment, with_special
from isotrace.domains.domain import Reading

SECONDS = 5
"""That a search may take; what it has found by then is used, and said."""
LAYINGS = 500
"""Ways to lay a piece on a molecule that are compared."""
Pairs = dict[int, int]
"""Atom of A → atom of B."""


def align(a: Reading, b: Reading) -> Alignment:
    """Raises InputError for the same molecule, whatever its spelling, and for two with fewer than SHARED atoms in
    common."""
    if Chem.MolToSmiles(a.parsed) == Chem.MolToSmiles(b.parsed):
        raise InputError(f"{a.text!r} and {b.text!r} are the same molecule: give another one to compare with.")
    common, cut = common_atoms(a.parsed, b.parsed)
    if len(common) < SHARED:
        raise InputError(
            f"{a.text!r} and {b.text!r} share {len(common)} connected atoms, too few to align (at least {SHARED}): "
            "give a pair with a common substructure."
        )
    paired = replaced(a.parsed, b.parsed, common)
    common = {i: j for i, j in paired.items() if i in common or alike(a.parsed, b.parsed, i, j, paired)}
    around = a.parsed, b.parsed
    turns = turned(*around, common)
    common = {
        i: j
        for i, j in common.items()
        if i not in turns and same_geometry(*around, i, j, paired) and same_kind(*around, i, j)
    }
    changed = [set(range(r.n_elements)) - set(kept) for r, kept in ((a, common), (b, common.values()))]
    notes = [f"The search for the common substructure was cut off after {SECONDS} s: it may be larger."] if cut else []
    if moved := len(common) - len(in_order(common[i] for i in sorted(common))):
        better = f", the second as {text}" if (text := written_like(b.parsed, paired, moved)) else ""
        notes.append(
            f"{moved} of {len(common)} common atoms stand in another order in the two SMILES, which is a difference to "
            f"the model too: write both alike{better}."
        )
    return Alignment(tokens(a, b, paired), (frozenset(changed[0]), frozenset(changed[1])), len(common), tuple(notes))


def common_atoms(a: Chem.Mol, b: Chem.Mol) -> tuple[Pairs, bool]:
    """Steps 1 and 2; whether a search was cut off."""
    found: Pairs = {}
    left_a, left_b = set(range(a.GetNumAtoms())), set(range(b.GetNumAtoms()))
    cut = False
    while min(len(left_a), len(left_b)) >= SHARED:
        parts = [_part(mol, left) for mol, left in ((a, left_a), (b, left_b))]
        search = rdFMCS.FindMCS([part for part, _ in parts], _parameters())
        cut = cut or search.canceled
        if search.numAtoms < SHARED:
            break
        query = Chem.MolFromSmarts(search.smartsString)
        laid = [_layings(part, numbers, query, way) for (part, numbers), way in zip(parts, (True, False), strict=True)]
        one, other = max(
            ((p, q) for p in laid[0] for q in laid[1]),
            key=lambda pair: _fit(a, b, *pair),
        )
        found |= dict(zip(one, other, strict=True))
        left_a, left_b = left_a - set(one), left_b - set(other)
    return found, cut


def _parameters() -> rdFMCS.MCSParameters:
    asked = rdFMCS.MCSParameters()
    asked.Timeout = SECONDS
    asked.AtomTyper, asked.BondTyper = rdFMCS.AtomCompare.CompareElements, rdFMCS.BondCompare.CompareOrder
    asked.AtomCompareParameters.MatchFormalCharge = True
    asked.AtomCompareParameters.RingMatchesRingOnly = True
    asked.BondCompareParameters.RingMatchesRingOnly = True
    return asked


def _part(mol: Chem.Mol, atoms: set[int]) -> tuple[Chem.Mol, list[int]]:
    """What is left of a molecule, not sanitised but with its rings, and the numbers of its atoms in the whole."""
    kept = sorted(atoms)
    part = Chem.RWMol(mol)
    for atom in sorted(set(range(mol.GetNumAtoms())) - atoms, reverse=True):
        part.RemoveAtom(atom)
    Chem.FastFindRings(part)
    return part.GetMol(), kept


def _layings(part: Chem.Mol, numbers: list[int], query: Chem.Mol, distinct: bool) -> list[tuple[int, ...]]:
    """Of one molecule every place, of the other every way to lie in it."""
    found = part.GetSubstructMatches(query, uniquify=distinct, maxMatches=20 if distinct else LAYINGS)
    return [tuple(numbers[i] for i in match) for match in found]


def _fit(a: Chem.Mol, b: Chem.Mol, one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, int]:
    pairs = list(zip(one, other, strict=True))
    degrees = sum(a.GetAtomWithIdx(i).GetDegree() == b.GetAtomWithIdx(j).GetDegree() for i, j in pairs)
    return degrees, len(in_order(j for _, j in sorted(pairs)))


def in_order(numbers: Iterable[int]) -> list[int]:
    """As long as the longest ascending subsequence of distinct numbers (its last members, not itself)."""
    tails: list[int] = []
    for number in numbers:
        tails[bisect_left(tails, number) : bisect_left(tails, number) + 1] = [number]
    return tails


def written_like(b: Chem.Mol, paired: Pairs, moved: int) -> str | None:
    """B in the order of A as far as it can be written so; None where no fewer than `moved` atoms then stand apart."""
    first = [paired[i] for i in sorted(paired)]
    order = first + sorted(set(range(b.GetNumAtoms())) - set(first))
    copy = Chem.RenumberAtoms(b, order)
    text = Chem.MolToSmiles(copy, canonical=False)
    written = json.loads(copy.GetProp("_smilesAtomOutputOrder"))
    apart = len(first) - len(in_order(atom for atom in written if atom < len(first)))
    return text if apart < moved else None


def replaced(a: Chem.Mol, b: Chem.Mol, common: Pairs) -> Pairs:
    """Step 3: `common` and the pairs that grow from it."""
    paired = dict(common)
    while True:
        back = {j: i for i, j in paired.items()}
        sides = [_hanging(mol, known) for mol, known in ((a, paired), (b, back))]
        grown = {}
        for around, atoms in sides[0].items():
            there = sides[1].get(frozenset(paired[n] for n in around), [])
            grown |= dict(zip(atoms, there, strict=False))
        if not grown:
            return paired
        paired |= grown


def _hanging(mol: Chem.Mol, known: Mapping[int, int]) -> dict[frozenset[int], list[int]]:
    """Atoms without a partner, by the neighbours that have one."""
    found: dict[frozenset[int], list[int]] = {}
    for atom in mol.GetAtoms():
        around = frozenset(n.GetIdx() for n in atom.GetNeighbors() if n.GetIdx() in known)
        if atom.GetIdx() not in known and around:
            found.setdefault(around, []).append(atom.GetIdx())
    return found


def alike(a: Chem.Mol, b: Chem.Mol, i: int, j: int, paired: Pairs) -> bool:
    """Whether a pair that grew is the same atom with the same bonds to paired atoms."""
    one, other = a.GetAtomWithIdx(i), b.GetAtomWithIdx(j)
    if not same_kind(a, b, i, j):
        return False
    bonds = {paired[n.GetIdx()]: a.GetBondBetweenAtoms(i, n.GetIdx()).GetBondType() for n in one.GetNeighbors()
             if n.GetIdx() in paired}  # fmt: skip
    there = {n.GetIdx(): b.GetBondBetweenAtoms(j, n.GetIdx()).GetBondType() for n in other.GetNeighbors()}
    return all(there.get(n) == kind for n, kind in bonds.items())


def same_geometry(a: Chem.Mol, b: Chem.Mol, i: int, j: int, paired: Pairs) -> bool:
    """Whether a centre points the same way, which elements and bonds do not say. Where more than one of its neighbours
    changed it cannot be told, and counts as the same."""
    one, other = a.GetAtomWithIdx(i), b.GetAtomWithIdx(j)
    tags = one.GetChiralTag(), other.GetChiralTag()
    if Chem.ChiralType.CHI_UNSPECIFIED in tags:
        return tags[0] == tags[1]
    mapped = [paired.get(bond.GetOtherAtomIdx(i), -1) for bond in one.GetBonds()]
    around = [bond.GetOtherAtomIdx(j) for bond in other.GetBonds()]
    others = [n for n in around if n not in mapped]
    if len(others) == mapped.count(-1) == 1:
        mapped[mapped.index(-1)] = others[0]
    if sorted(mapped) != sorted(around):
        return True
    order = [around.index(n) for n in mapped]
    swaps = sum(order[x] > order[y] for x in range(len(order)) for y in range(x + 1, len(order)))
    return (tags[0] == tags[1]) == (swaps % 2 == 0)


def same_kind(a: Chem.Mol, b: Chem.Mol, i: int, j: int) -> bool:
    """Element, charge, isotope and aromaticity."""
    kinds = ((x.GetAtomicNum(), x.GetFormalCharge(), x.GetIsotope(), x.GetIsAromatic())
             for x in (a.GetAtomWithIdx(i), b.GetAtomWithIdx(j)))  # fmt: skip
    return len(set(kinds)) == 1


def turned(a: Chem.Mol, b: Chem.Mol, common: Pairs) -> set[int]:
    """Atoms of A in double bonds whose E or Z differs, where all that stands around them is common."""
    found: set[int] = set()
    for bond in a.GetBonds():
        ends = bond.GetBeginAtom(), bond.GetEndAtom()
        around = {n.GetIdx() for end in ends for n in end.GetNeighbors()}
        if bond.GetBondType() != Chem.BondType.DOUBLE or not around <= common.keys():
            continue
        there = b.GetBondBetweenAtoms(*(common[end.GetIdx()] for end in ends))
        if there is not None and there.GetStereo() != bond.GetStereo():
            found |= {end.GetIdx() for end in ends}
    return found


def tokens(a: Reading, b: Reading, paired: Pairs) -> tuple[int | None, ...]:
    """Step 4."""
    writes = {elements: token for token, elements in enumerate(b.elements) if elements}
    partner: list[int | None] = [None] * len(a.units)
    for token, elements in enumerate(a.elements):
        if elements and all(e in paired for e in elements):
            partner[token] = writes.get(tuple(paired[e] for e in elements))
    for place, other in [(p, q) for p, q in enumerate(partner) if q is not None]:
        runs = list(_run(a, place)), list(_run(b, other))
        keys = [[_says(a, t, paired) for t in runs[0]], [_says(b, t, None) for t in runs[1]]]
        for start, there, n in SequenceMatcher(None, *keys, autojunk=False).get_matching_blocks():
            for step in range(n):
                partner[runs[0][start + step]] = runs[1][there + step]
    return with_special(a, b, partner)


def _run(reading: Reading, place: int) -> Iterator[int]:
    """Tokens behind `place` before the next that writes atoms."""
    for token in range(place + 1, len(reading.units)):
        if reading.elements[token]:
            return
        yield token


def _says(reading: Reading, token: int, paired: Pairs | None) -> tuple[object, ...]:
    """What a token without atoms of its own says, in the numbers of B; a ring's digit may be another."""
    unit = reading.units[token]
    joined = unit.atoms if paired is None else tuple(paired.get(i, -1 - i) for i in unit.atoms)
    if unit.kind in ("bond", "ring"):
        return unit.kind, frozenset(joined), unit.text if unit.kind == "bond" else ""
    return unit.kind, unit.text
