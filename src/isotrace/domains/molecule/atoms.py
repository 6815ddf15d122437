"""Concepts of atoms, tested on the RDKit molecule: of single atoms, and of atoms that belong together.

Aromaticity is RDKit's: the carbonyl of a 2-pyridone or coumarin is aromatic, so no lactam or lactone. Degrees and
hydrogen counts do not depend on whether hydrogens are written as atoms.
"""

from collections.abc import Iterator

from rdkit import Chem

from isotrace.domains.domain import Concept
from isotrace.domains.molecule.vocabulary.environments import environments, known_environments
from isotrace.domains.molecule.vocabulary.patterns import functional_groups, structural_alerts
from isotrace.domains.molecule.vocabulary.scaffolds import connected, scaffold_parts

ELEMENTS = ("C", "N", "O", "F", "S", "Cl", "Br", "I", "P", "B", "Si", "Se", "H")
HYBRIDISATION = {
    Chem.HybridizationType.SP: "sp",
    Chem.HybridizationType.SP2: "sp2",
    Chem.HybridizationType.SP3: "sp3",
}
RING_SIZES = range(3, 8)
MACROCYCLE = 12  # atoms, the usual lower limit

_SINGLE = {
    "element": (*(f"element {e}" for e in ELEMENTS), "other element"),
    "aromaticity": ("aromatic atom", *(f"aromatic {e}" for e in ("C", "N", "O", "S"))),
    "ring": (
        "aliphatic ring atom",
        "atom in several rings",
        "ring fusion atom",
        "spiro atom",
        "bridgehead atom",
        "non-ring atom",
    ),
    "charge": ("positive charge", "negative charge"),
    "chirality": ("chiral centre", "R centre", "S centre"),
    "isotope": ("isotope label",),
    "hybridisation": tuple(HYBRIDISATION.values()),
    "hydrogens": tuple(f"hydrogen count {n}" for n in range(4)),
    "degree": tuple(f"degree {n}" for n in range(1, 5)),
}
_JOINT = {
    "ring": (
        *(f"{n}-membered ring" for n in RING_SIZES),
        "ring of 8 or more atoms",
        "macrocycle",
        "aromatic ring",
        "heteroaromatic ring",
        "fused ring system",
    ),
    "stereo": ("E double bond", "Z double bond"),
    "scaffold": ("scaffold", "linker between rings", "side chain"),
    "functional group": functional_groups().names,
    "structural alert": structural_alerts().names,
}
_ENVIRONMENTS = {text: f"radius-{radius} {text}" for text, radius in known_environments().items()}
_NAMED: tuple[dict[str, str], dict[str, str]] = (
    {text: name for text, name in _ENVIRONMENTS.items() if name.startswith("radius-1 ")},
    {text: name for text, name in _ENVIRONMENTS.items() if name.startswith("radius-2 ")},
)


def _concepts() -> tuple[Concept, ...]:
    listed = [Concept(name, group, "token") for group, names in _SINGLE.items() for name in names]
    listed += [Concept(name, group, "token") for group, names in _JOINT.items() for name in names]
    listed += [Concept(name, f"environment {name.split()[0]}", "token") for name in _ENVIRONMENTS.values()]
    return tuple(listed)


ATOM_CONCEPTS = _concepts()


def single_atom_concepts(mol: Chem.Mol) -> list[list[str]]:
    """Names of what each atom of `mol` is, in its order."""
    rings = mol.GetRingInfo()
    sizes = [rings.NumAtomRings(i) for i in range(mol.GetNumAtoms())]
    fused = _fusion_atoms(mol)
    spiro, bridge = _special_atoms(mol)
    named = []
    for atom, around, in_rings in zip(mol.GetAtoms(), environments(mol), sizes, strict=True):
        i, symbol, aromatic = atom.GetIdx(), atom.GetSymbol(), atom.GetIsAromatic()
        names = [f"element {symbol}" if symbol in ELEMENTS else "other element"]
        if aromatic:
            names.append("aromatic atom")
            if symbol in ("C", "N", "O", "S"):
                names.append(f"aromatic {symbol}")
        elif in_rings:
            names.append("aliphatic ring atom")
        if not in_rings:
            names.append("non-ring atom")
        elif in_rings > 1:
            names.append("atom in several rings")
        if i in fused:
            names.append("ring fusion atom")
        if i in spiro:
            names.append("spiro atom")
        if i in bridge:
            names.append("bridgehead atom")
        if charge := atom.GetFormalCharge():
            names.append("positive charge" if charge > 0 else "negative charge")
        if atom.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED:
            names.append("chiral centre")
        if atom.HasProp("_CIPCode") and (label := atom.GetProp("_CIPCode")) in "RS":
            names.append(f"{label} centre")
        if atom.GetIsotope():
            names.append("isotope label")
        if (hybrid := HYBRIDISATION.get(atom.GetHybridization())) is not None:
            names.append(hybrid)
        if (hydrogens := atom.GetTotalNumHs(True)) < 4:
            names.append(f"hydrogen count {hydrogens}")
        if 1 <= (degree := sum(other.GetAtomicNum() != 1 for other in atom.GetNeighbors())) <= 4:
            names.append(f"degree {degree}")
        names += [known[text] for known, text in zip(_NAMED, around, strict=True) if text in known]
        named.append(names)
    return named


def joint_atom_concepts(mol: Chem.Mol) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, atoms) of every ring, double bond with a configuration, scaffold part, functional group and alert."""
    yield from _rings(mol)
    for bond in mol.GetBonds():
        if bond.GetStereo() in (Chem.BondStereo.STEREOE, Chem.BondStereo.STEREOTRANS):
            yield "E double bond", (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
        elif bond.GetStereo() in (Chem.BondStereo.STEREOZ, Chem.BondStereo.STEREOCIS):
            yield "Z double bond", (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())
    parts = scaffold_parts(mol)
    for name, found in zip(_JOINT["scaffold"], (parts.scaffolds, parts.linkers, parts.side_chains), strict=True):
        for atoms in found:
            yield name, atoms
    yield from functional_groups().matches(mol)
    yield from structural_alerts().matches(mol)


def _rings(mol: Chem.Mol) -> Iterator[tuple[str, tuple[int, ...]]]:
    info = mol.GetRingInfo()
    for atoms, bonds in zip(info.AtomRings(), info.BondRings(), strict=True):
        size = len(atoms)
        yield f"{size}-membered ring" if size in RING_SIZES else "ring of 8 or more atoms", atoms
        if size >= MACROCYCLE:
            yield "macrocycle", atoms
        if all(mol.GetBondWithIdx(b).GetIsAromatic() for b in bonds):
            yield "aromatic ring", atoms
            if any(mol.GetAtomWithIdx(a).GetAtomicNum() != 6 for a in atoms):
                yield "heteroaromatic ring", atoms
    fused = [set(info.AtomRings()[i]) for i in range(info.NumRings()) if info.IsRingFused(i)]
    while fused:
        system = fused.pop()
        while touching := [ring for ring in fused if len(ring & system) > 1]:
            system.update(*touching)
            fused = [ring for ring in fused if ring not in touching]
        yield "fused ring system", tuple(sorted(system))


def _fusion_atoms(mol: Chem.Mol) -> set[int]:
    """Both ends of every bond that lies in more than one ring."""
    shared = [bond for bond in mol.GetBonds() if mol.GetRingInfo().NumBondRings(bond.GetIdx()) > 1]
    return {i for bond in shared for i in (bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())}


def _special_atoms(mol: Chem.Mol) -> tuple[set[int], set[int]]:
    """(spiro, bridgehead) atoms: the only atom two rings share; the ends of a path of bonds that two rings share."""
    rings = [set(ring) for ring in mol.GetRingInfo().AtomRings()]
    spiro, bridge = set(), set()
    for i, one in enumerate(rings):
        for other in rings[:i]:
            shared = one & other
            if len(shared) == 1:
                spiro |= shared
            elif len(shared) > 2 and len(connected(mol, shared)) == 1:
                inside = {a: sum(n.GetIdx() in shared for n in mol.GetAtomWithIdx(a).GetNeighbors()) for a in shared}
                bridge |= {a for a, count in inside.items() if count == 1}
    return spiro, bridge
