"""A molecule in groups: every atom once, the names that a chemist expects."""

import pytest
from rdkit import Chem

from isotrace.domains.molecule.groups import disjoint_groups


@pytest.mark.parametrize(
    ("smiles", "names"),
    [
        ("CC(=O)Oc1ccccc1C(=O)O", ["CH3", "ester", "benzene ring", "carboxylic acid"]),
        # the ring keeps what the phenols leave it, and they are told apart by their first atom
        ("NCCc1ccc(O)c(O)c1", ["primary amine", "alkyl", "benzene ring", "phenol (O7)", "phenol (O9)"]),
        ("FC(F)(F)c1ccc(Cl)cc1", ["trifluoromethyl", "benzene ring", "aryl chloride"]),
        ("C1CCC2CCCCC2C1", ["cyclohexyl (C0)", "cyclohexyl (C4)"]),
        ("Cn1ccccc1=O", ["CH3", "2-pyridone"]),
        ("Cn1cccnc1=O", ["CH3", "6-membered ring", "=O"]),
        ("[Na+].CC(=O)[O-]", ["Na", "CH3", "carboxylate"]),
        ("[H][H]", ["H2 part"]),
    ],
)
def test_what_a_chemist_would_say(smiles, names):
    groups = disjoint_groups(Chem.MolFromSmiles(smiles))
    assert sorted(group.name for group in groups) == sorted(names)


@pytest.mark.parametrize(
    "smiles",
    [
        "CC1(C)SC2C(NC(=O)Cc3ccccc3)C(=O)N2C1C(=O)O",
        "CN1CCC23C4C1CC5=C2C(=C(C=C5)O)OC3C(C=C4)O",
        "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
        "O=C1c2ccccc2C(=O)N1C1CCC(=O)NC1=O",
    ],
)
def test_every_atom_is_told_once_however_the_molecule_is_written(smiles):
    mol = Chem.MolFromSmiles(smiles)
    groups = disjoint_groups(mol)
    assert sorted(a for group in groups for a in group.elements) == list(range(mol.GetNumAtoms()))
    assert len({group.name for group in groups}) == len(groups)
    turned = Chem.RenumberAtoms(mol, list(reversed(range(mol.GetNumAtoms()))))
    last = mol.GetNumAtoms() - 1
    parts = {frozenset(last - a for a in group.elements) for group in disjoint_groups(turned)}
    assert parts == {frozenset(group.elements) for group in groups}
