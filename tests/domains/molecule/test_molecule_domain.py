"""The molecule domain as a plug-in: reading, matching, grouping, respelling, drawing."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Geometry import Point3D

from isotrace.base.errors import InputError
from isotrace.domains.domain import Reading, domain_of
from isotrace.domains.molecule.smiles import lex

DATA = Path(__file__).parents[2] / "data"
HARD = (DATA / "hard_smiles.smi").read_text().split()
HELD_OUT = [line.split()[0] for line in (DATA / "heldout.smi").read_text().splitlines()]
MOLECULE = domain_of("molecule")


def read(smiles: str) -> Reading:
    """One token per lexeme."""
    items = lex(smiles)
    return MOLECULE.read(smiles, [item.text for item in items], [(item.start, item.end) for item in items])


@pytest.mark.parametrize("smiles", HARD)
def test_every_atom_is_written_by_one_token_and_bonds_are_rdkits(smiles):
    reading = read(smiles)
    assert sorted(e for part in reading.elements for e in part) == list(range(reading.parsed.GetNumAtoms()))
    assert reading.n_elements == reading.parsed.GetNumAtoms()
    bonds = MOLECULE.bonds(reading)
    assert bonds.shape == (reading.parsed.GetNumBonds(), 2)
    assert bonds.dtype == np.int64
    assert all(reading.parsed.GetBondBetweenAtoms(int(i), int(j)) is not None for i, j in bonds)
    MOLECULE.check(smiles)


@pytest.mark.parametrize("bad", ["", "C(", "C1CC", "c1cccc1", "C(C)(C)(C)(C)C", "hello"])
def test_what_is_no_molecule_is_refused(bad):
    with pytest.raises(InputError):
        MOLECULE.check(bad)


# kind, pattern, SMILES, texts of the tokens of each match
MATCHES = [
    ("smarts", "[CX3]=O", "CC(=O)CC=O", [["C", "O"], ["C", "O"]]),
    ("smarts", "c1ccccc1", "Cc1ccccc1", [["c"] * 6]),
    ("smarts", "[Xe]", "CCO", []),
    ("regex", r"C\(", "CC(=O)C(N)O", [["C", "("], ["C", "("]]),
    ("regex", r"\[[^\]]+\]", "C[N+](=O)[O-]", [["[N+]"], ["[O-]"]]),
    ("regex", "l", "CCl", [["Cl"]]),
    ("regex", "x*", "CCO", []),
]


@pytest.mark.parametrize(("kind", "pattern", "smiles", "texts"), MATCHES)
def test_match(kind, pattern, smiles, texts):
    reading = read(smiles)
    found = [[reading.units[i].text for i in tokens] for tokens in MOLECULE.match(kind, pattern, reading)]
    assert found == texts


@pytest.mark.parametrize(("kind", "pattern"), [("smarts", "C("), ("smarts", ""), ("regex", "("), ("prosite", "N-x")])
def test_a_pattern_that_cannot_be_used_is_named(kind, pattern):
    with pytest.raises(InputError, match=re.escape(repr(kind if kind == "prosite" else pattern))):
        MOLECULE.match(kind, pattern, read("CCO"))


def test_more_matches_than_rdkits_own_limit():
    assert len(MOLECULE.match("smarts", "C", read("C" * 1500))) == 1500


def test_groups_join_relatives_and_part_strangers():
    alike = [
        ["Cc1ccccc1", "OCc1ccccc1", "c1ccccc1.Cl", "[2H]c1ccccc1", "C[C@H](N)c1ccccc1"],
        ["CCCCO", "CCCCN", "CCCC=O", "CCCC[O-].[Na+]"],
        ["CC(C)C", "CC(N)=O"],
        ["C1CC1CC1CC1", "CC1CC1CC1CC1"],
    ]
    names = [set(MOLECULE.groups(group)) for group in alike]
    assert [len(found) for found in names] == [1] * len(alike)
    assert len(set.union(*names)) == len(alike)
    with pytest.raises(InputError):
        MOLECULE.groups(["CCO", "C("])


def test_groups_do_not_depend_on_the_spelling():
    for smiles in HELD_OUT[::8]:
        others = [s.text for s in MOLECULE.spellings(read(smiles), 2, seed=3)]
        assert len(set(MOLECULE.groups([smiles, *others]))) == 1


@pytest.mark.parametrize("smiles", [*HARD, *HELD_OUT[::10]])
def test_spellings_are_the_same_molecule_atom_by_atom(smiles):
    reading = read(smiles)
    found = MOLECULE.spellings(reading, 3, seed=1)
    assert found == MOLECULE.spellings(reading, 3, seed=1)
    assert len({s.text for s in found} | {smiles}) == len(found) + 1
    edges = {frozenset(pair) for pair in MOLECULE.bonds(reading).tolist()}
    for spelling in found:
        other = read(spelling.text)
        assert sorted(spelling.original) == list(range(reading.n_elements))
        assert {frozenset(spelling.original[a] for a in pair) for pair in MOLECULE.bonds(other).tolist()} == edges
        for i, atom in zip(spelling.original, other.parsed.GetAtoms(), strict=True):
            twin = reading.parsed.GetAtomWithIdx(i)
            assert (atom.GetSymbol(), atom.GetFormalCharge(), atom.GetIsotope()) == (
                twin.GetSymbol(),
                twin.GetFormalCharge(),
                twin.GetIsotope(),
            )


def test_what_can_be_written_in_one_way_only_has_no_other_spelling():
    assert MOLECULE.spellings(read("C"), 3, seed=0) == []


def from_picture(picture: dict) -> str:
    """Canonical SMILES of the molecule that somebody who sees the picture would draw up."""
    mol = Chem.RWMol()
    conformer = Chem.Conformer(len(picture["atoms"]))
    for i, (symbol, x, y, label) in enumerate(picture["atoms"]):
        atom = Chem.Atom(symbol)
        charge = re.search("([⁰¹²³⁴⁵⁶⁷⁸⁹]*)([⁺⁻])", label)
        if charge:
            size = int(charge[1].translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")) or 1)
            atom.SetFormalCharge(size if charge[2] == "⁺" else -size)
        mol.AddAtom(atom)
        conformer.SetAtomPosition(i, Point3D(x, y, 0))
    directions = {"wedge": Chem.BondDir.BEGINWEDGE, "dash": Chem.BondDir.BEGINDASH}
    orders = {1: Chem.BondType.SINGLE, 2: Chem.BondType.DOUBLE, 3: Chem.BondType.TRIPLE}
    for i, j, order, *wedge in picture["bonds"]:
        mol.AddBond(i, j, orders[order])
        for name in wedge:
            mol.GetBondBetweenAtoms(i, j).SetBondDir(directions[name])
    mol.AddConformer(conformer)
    Chem.SanitizeMol(mol)
    Chem.AssignChiralTypesFromBondDirs(mol)
    Chem.SetDoubleBondNeighborDirections(mol, mol.GetConformer())
    Chem.AssignStereochemistry(mol, cleanIt=True, force=True)
    return Chem.MolToSmiles(mol)


@pytest.mark.parametrize("smiles", ["N[C@@H](C)C(=O)O", "N[C@H](C)C(=O)O", "F/C=C/Cl", "F/C=C\\Cl", "C[N+](=O)[O-]"])
def test_a_picture_shows_the_molecule_with_its_stereochemistry(smiles):
    reading = read(smiles)
    assert from_picture(MOLECULE.picture(reading)) == Chem.MolToSmiles(reading.parsed)


def test_pictures_of_held_out_molecules():
    shown = 0
    for smiles in HELD_OUT[::3]:
        reading = read(smiles)
        if any(a.GetIsotope() or a.GetNumRadicalElectrons() for a in reading.parsed.GetAtoms()):
            continue
        # A double bond that is left open has to be drawn one way or the other.
        if any(info.type == Chem.StereoType.Bond_Double for info in Chem.FindPotentialStereo(reading.parsed)):
            continue
        assert from_picture(MOLECULE.picture(reading)) == Chem.MolToSmiles(reading.parsed)
        shown += 1
    assert shown > 30


def test_a_picture_labels_what_carbon_lines_do_not_show():
    picture = MOLECULE.picture(read("C[13CH2]O.[NH4+].C.[O-]N"))
    assert [[symbol, label] for symbol, _, _, label in picture["atoms"]] == [
        ["C", ""],
        ["¹³C", "¹³CH₂"],
        ["O", "OH"],
        ["N", "NH₄⁺"],
        ["C", "CH₄"],
        ["O", "O⁻"],
        ["N", "NH₂"],
    ]
    assert picture["tokens"][2:5] == [["O", [2]], [".", []], ["[NH4+]", [3]]]
    assert (picture["kind"], picture["marks"]) == ("graph", [])


@pytest.mark.parametrize("smiles", HARD)
def test_pictures_and_drawings_of_hard_smiles(smiles):
    reading = read(smiles)
    picture = MOLECULE.picture(reading)
    assert len(picture["atoms"]) == reading.n_elements
    assert {frozenset(b[:2]) for b in picture["bonds"]} == {
        frozenset(pair) for pair in MOLECULE.bonds(reading).tolist()
    }
    svg = ET.fromstring(MOLECULE.draw(reading, [1.0] * len(reading.units)))
    space = "{http://www.w3.org/2000/svg}"
    assert {e.get("data-element") for e in svg.iter(f"{space}circle") if e.get("class") == "heat"} == {
        str(i) for i in range(reading.n_elements)
    }
    assert len(list(svg.iter(f"{space}rect"))) == len(reading.units)


def test_drawing_colours_an_atom_by_its_hottest_token_and_a_bond_by_its_digit():
    reading = MOLECULE.read("C1CC1", list("C1CC1"), [(i, i + 1) for i in range(5)])
    svg = MOLECULE.draw(reading, [1.0, 4.0, 0.0, 2.0, 0.0], scale=4.0)
    assert re.findall(r'class="heat" data-element="(\d)"', svg) == ["0", "2"]
    assert len(re.findall(r'class="heat" data-bond="\d"', svg)) == 1
    with pytest.raises(InputError, match="one weight per token"):
        MOLECULE.draw(reading, [1.0])
    with pytest.raises(InputError, match="scale"):
        MOLECULE.draw(reading, [0.0, 5.0, 0.0, 0.0, 0.0], scale=4.0)
