"""A molecule told in the words of a chemist: every atom in exactly one functional group, ring or rest."""

from rdkit import Chem

from isotrace.domains.domain import Group
from isotrace.domains.molecule.atoms import joint_atom_concepts
from isotrace.domains.molecule.vocabulary.patterns import functional_groups
from isotrace.domains.molecule.vocabulary.scaffolds import connected


def disjoint_groups(mol: Chem.Mol) -> tuple[Group, ...]:
    """Functional groups before rings that have no name of their own, larger before smaller, of equal ones the more
    special, which stands later in the list of patterns. Each takes those of its atoms that are free, if they are half
    of it or more: the phenol of tyrosine its oxygen, the ring the rest. What stays free is told by its connected parts.
    Names that occur twice are followed by their first atom, `phenol (O7)`. `mol` is sanitised."""
    special = {name: place for place, name in enumerate(functional_groups().names)}
    found = [(name, at) for name, at in joint_atom_concepts(mol) if name in special or name.endswith("-membered ring")]
    found.sort(key=lambda one: (one[0] not in special, -len(one[1]), -special.get(one[0], 0), min(one[1])))
    free, parts = set(range(mol.GetNumAtoms())), []
    for name, atoms in found:
        own = free.intersection(atoms)
        if own and 2 * len(own) >= len(atoms):
            parts.append((name, tuple(sorted(own))))
            free -= own
    parts += [(_rest(mol, atoms), atoms) for atoms in connected(mol, free)]
    names = [name for name, _ in parts]
    told = ((name if names.count(name) == 1 else f"{name} ({_atom(mol, atoms[0])})", atoms) for name, atoms in parts)
    return tuple(sorted((Group(*one) for one in told), key=lambda group: group.elements))


def _atom(mol: Chem.Mol, i: int) -> str:
    return f"{mol.GetAtomWithIdx(i).GetSymbol()}{i}"


def _rest(mol: Chem.Mol, atoms: tuple[int, ...]) -> str:
    """What a part without a name is made of: `CH2`, `alkyl`, `C2N part`."""
    own = [mol.GetAtomWithIdx(i) for i in atoms]
    if len(own) == 1:
        symbol, hydrogens = own[0].GetSymbol(), own[0].GetTotalNumHs(True)
        double = any(bond.GetBondType() == Chem.BondType.DOUBLE for bond in own[0].GetBonds())
        return ("=" if double else "") + symbol + ("" if not hydrogens else "H" if hydrogens == 1 else f"H{hydrogens}")
    heavy = [atom for atom in own if atom.GetAtomicNum() > 1]
    symbols = [atom.GetSymbol() for atom in heavy or own]
    if set(symbols) == {"C"} and all(atom.GetHybridization() == Chem.HybridizationType.SP3 for atom in own):
        return "alkyl"
    counts = {symbol: symbols.count(symbol) for symbol in sorted(symbols, key=lambda s: (s != "C", s))}
    return "".join(f"{symbol}{n if n > 1 else ''}" for symbol, n in counts.items()) + " part"
