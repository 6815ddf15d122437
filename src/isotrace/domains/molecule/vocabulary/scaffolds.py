"""Bemis–Murcko scaffolds (doi 10.1021/jm9602928): their atoms in a molecule, and the group a molecule belongs to."""

from dataclasses import dataclass

from rdkit import Chem

_MARK = "isotrace_atom"


@dataclass(frozen=True)
class ScaffoldParts:
    """Atoms, each part connected: `scaffolds` are rings, what joins them and what is doubly bound to those (as RDKit
    has it), `linkers` the atoms between rings, `side_chains` what hangs on a scaffold. Ring-free fragments are in
    none."""

    scaffolds: tuple[tuple[int, ...], ...]
    linkers: tuple[tuple[int, ...], ...]
    side_chains: tuple[tuple[int, ...], ...]


def scaffold_parts(mol: Chem.Mol) -> ScaffoldParts:
    marked = Chem.Mol(mol)
    for atom in marked.GetAtoms():
        atom.SetIntProp(_MARK, atom.GetIdx())
    core = Chem.MurckoDecompose(marked)
    atoms = {a.GetIntProp(_MARK) for a in core.GetAtoms() if a.HasProp(_MARK)}
    ring = {i for ring in mol.GetRingInfo().AtomRings() for i in ring}
    linker = {a.GetIntProp(_MARK) for a in core.GetAtoms() if a.HasProp(_MARK) and a.GetDegree() > 1} - ring
    cyclic = {i for part in Chem.GetMolFrags(mol) if not ring.isdisjoint(part) for i in part}
    return ScaffoldParts(connected(mol, atoms), connected(mol, linker), connected(mol, cyclic - atoms))


def connected(mol: Chem.Mol, atoms: set[int]) -> tuple[tuple[int, ...], ...]:
    """Connected parts of the subgraph of `atoms`, each ascending, in order of their first atoms."""
    left, parts = set(atoms), []
    for start in sorted(atoms):
        if start not in left:
            continue
        left.remove(start)
        part, queue = [start], [start]
        while queue:
            for other in mol.GetAtomWithIdx(queue.pop()).GetNeighbors():
                if other.GetIdx() in left:
                    left.remove(other.GetIdx())
                    part.append(other.GetIdx())
                    queue.append(other.GetIdx())
        parts.append(tuple(sorted(part)))
    return tuple(parts)


def scaffold_group(mol: Chem.Mol) -> str:
    """SMILES of the Murcko scaffold without stereo, isotopes and atom maps.

    For a molecule without a ring it is the carbon skeleton (every heavy atom a carbon, every bond single) of its
    largest fragment: an empty scaffold would put all of them into one group, and the molecule itself would separate
    butanol from butylamine.
    """
    core = Chem.MurckoDecompose(mol)
    if core.GetNumAtoms():
        plain = Chem.RWMol(core)
        for atom in plain.GetAtoms():
            atom.SetAtomMapNum(0)
        return Chem.MolToSmiles(plain, isomericSmiles=False)
    fragments = [[i for i in part if mol.GetAtomWithIdx(i).GetAtomicNum() != 1] for part in Chem.GetMolFrags(mol)]
    texts = []
    for part in fragments:
        skeleton = Chem.RWMol()
        new = {i: skeleton.AddAtom(Chem.Atom(6)) for i in part}
        for bond in mol.GetBonds():
            if bond.GetBeginAtomIdx() in new and bond.GetEndAtomIdx() in new:
                skeleton.AddBond(new[bond.GetBeginAtomIdx()], new[bond.GetEndAtomIdx()], Chem.BondType.SINGLE)
        texts.append((len(part), Chem.MolToSmiles(skeleton)))
    # The text breaks ties, so that the order of writing does not matter.
    return max(texts)[1] or Chem.MolToSmiles(mol)
