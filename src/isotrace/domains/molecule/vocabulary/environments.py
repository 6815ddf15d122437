"""Names of atom environments: what stands around an atom within one and two bonds.

The name is the neighbourhood itself, written from the atom outwards, so it means the same in every data set and in
every version of RDKit: `cH(:c)(:c)` is an aromatic CH between two aromatic carbons. Atoms carry their symbol (small
if aromatic), hydrogen count and charge, those at the rim only their symbol; branches are sorted. Two atoms share a
name of radius r exactly if r rounds of neighbourhood refinement, as in Morgan fingerprints (Rogers and Hahn 2010,
doi 10.1021/ci100050t), on these labels leave them alike. Hydrogens written as atoms are counted, not walked to.
"""

from rdkit import Chem

from isotrace.base.files import shipped_rows

_BOND = {
    Chem.BondType.SINGLE: "-",
    Chem.BondType.DOUBLE: "=",
    Chem.BondType.TRIPLE: "#",
    Chem.BondType.AROMATIC: ":",
}


def environments(mol: Chem.Mol) -> list[tuple[str, str]]:
    """Names of radius 1 and 2 of every atom of `mol`, in its order; hydrogens that are atoms have empty names."""
    atoms = list(mol.GetAtoms())
    heavy = [a.GetAtomicNum() != 1 or a.GetDegree() != 1 for a in atoms]
    rim = [a.GetSymbol().lower() if a.GetIsAromatic() else a.GetSymbol() for a in atoms]
    inner = [symbol + _decoration(a) for symbol, a in zip(rim, atoms, strict=True)]
    around: list[list[tuple[int, str]]] = [[] for _ in atoms]
    for bond in mol.GetBonds():
        i, j, symbol = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx(), _BOND.get(bond.GetBondType(), "~")
        if heavy[i] and heavy[j]:
            around[i].append((j, symbol))
            around[j].append((i, symbol))
    shell = [[(j, f"({bond}{rim[j]})") for j, bond in near] for near in around]
    names = []
    for i, near in enumerate(around):
        one = "".join(sorted(text for _, text in shell[i]))
        two = sorted(f"({bond}{inner[j]}{''.join(sorted(text for k, text in shell[j] if k != i))})" for j, bond in near)
        names.append((inner[i] + one, inner[i] + "".join(two)) if heavy[i] else ("", ""))
    return names


def known_environments() -> dict[str, int]:
    """Radius of every environment that is a concept: environments.csv, which scripts/build_concepts.py writes."""
    rows = shipped_rows("isotrace.domains.molecule.vocabulary", "environments.csv")
    return {row["environment"]: int(row["radius"]) for row in rows}


def _decoration(atom: Chem.Atom) -> str:
    hydrogens, charge = atom.GetTotalNumHs(True), atom.GetFormalCharge()
    text = "H" * (hydrogens > 0) + str(hydrogens) * (hydrogens > 1)
    return text + ("+" if charge > 0 else "-" if charge < 0 else "") + str(abs(charge)) * (abs(charge) > 1)
