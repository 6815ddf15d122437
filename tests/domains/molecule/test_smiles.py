"""The SMILES lexer against RDKit's own reading of hard SMILES."""

from pathlib import Path

import pytest
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.domains.molecule.smiles import lex
from isotrace.domains.molecule.tokens import element

HARD = (Path(__file__).parents[2] / "data" / "hard_smiles.smi").read_text().split()


def read(smiles: str) -> Chem.Mol:
    """RDKit's reading without sanitisation, so that nothing but the parser decides atoms and bonds."""
    params = Chem.SmilesParserParams()
    params.removeHs = False
    params.sanitize = False
    return Chem.MolFromSmiles(smiles, params)


@pytest.mark.parametrize("smiles", HARD)
def test_lexemes_spell_the_string(smiles):
    items = lex(smiles)
    assert "".join(item.text for item in items) == smiles
    assert all(smiles[item.start : item.end] == item.text for item in items)


@pytest.mark.parametrize("smiles", HARD)
def test_atoms_are_those_of_rdkit_in_order(smiles):
    atoms = [item for item in lex(smiles) if item.kind == "atom"]
    assert [item.atoms for item in atoms] == [(i,) for i in range(len(atoms))]
    assert [element(item.text) for item in atoms] == [atom.GetSymbol() for atom in read(smiles).GetAtoms()]


@pytest.mark.parametrize("smiles", HARD)
def test_bond_symbols_and_ring_digits_join_bonded_atoms(smiles):
    mol = read(smiles)
    for item in lex(smiles):
        if item.kind in ("bond", "ring"):
            assert mol.GetBondBetweenAtoms(*item.atoms) is not None, item


@pytest.mark.parametrize("smiles", HARD)
def test_pairs_are_mutual_and_alike(smiles):
    items = lex(smiles)
    for index, item in enumerate(items):
        if item.kind in ("ring", "branch"):
            assert item.partner is not None
            other = items[item.partner]
            assert (other.partner, other.kind, other.atoms) == (index, item.kind, item.atoms)
            assert item.kind == "ring" or other.depth == item.depth  # a ring may close deeper than it opened
        else:
            assert item.partner is None


@pytest.mark.parametrize(
    ("smiles", "text", "order"),
    [
        ("C=CC", "=", 2),
        ("C=1CCCCC=1", "=", 2),
        ("C=1CCCCC1", "=", 2),
        ("CC#N", "#", 3),
        ("C(=O)C", "=", 2),
        ("C$C", "$", 4),
    ],
)
def test_bond_symbols_sit_on_bonds_of_their_order(smiles, text, order):
    mol = read(smiles)
    found = [item for item in lex(smiles) if item.text == text]
    assert found
    assert {mol.GetBondBetweenAtoms(*item.atoms).GetBondTypeAsDouble() for item in found} == {order}


def rings(smiles: str) -> set[tuple[int, ...]]:
    return {item.atoms for item in lex(smiles) if item.kind == "ring"}


@pytest.mark.parametrize(
    ("smiles", "joined"),
    [
        ("C1CC1C1CC1", {(0, 2), (3, 5)}),  # a digit used again
        ("C12CC1C2", {(0, 2), (0, 3)}),  # two digits on one atom
        ("C%10CC%10", {(0, 2)}),
        ("C%123CC%12C3", {(0, 2), (0, 3)}),  # %12 then 3, not %123
        ("C1CC%(01)", {(0, 2)}),  # leading zeros do not count
        ("C%(123)CC%(123)", {(0, 2)}),
        ("C1.C1", {(0, 1)}),  # across a dot
        ("[13CH2]1C[15NH]1", {(0, 2)}),  # digits inside brackets close nothing
    ],
)
def test_ring_closures(smiles, joined):
    assert rings(smiles) == joined
    assert all(read(smiles).GetBondBetweenAtoms(*pair) is not None for pair in joined)


def test_branches_nest():
    items = lex("C(C(C)N)O")
    assert [(item.text, item.atoms, item.depth) for item in items] == [
        ("C", (0,), 0),
        ("(", (0,), 1),
        ("C", (1,), 1),
        ("(", (1,), 2),
        ("C", (2,), 2),
        (")", (1,), 2),
        ("N", (3,), 1),
        (")", (0,), 1),
        ("O", (4,), 0),
    ]


def test_a_bond_symbol_inside_a_branch_hangs_on_the_branching_atom():
    assert next(item.atoms for item in lex("CC(=O)O") if item.text == "=") == (1, 2)


def test_a_dot_stands_for_no_atom():
    assert next(item for item in lex("[Na+].[Cl-]") if item.text == ".").atoms == ()


@pytest.mark.parametrize(
    "smiles",
    [
        "C1CC",
        "C%10CC%11",
        "C(C",
        "CC)",
        "C)C(",
        "1CC1",
        "[nope]",
        "[C",
        "C]",
        "[]",
        "CX",
        "C C",
        "CC>>CN",
        "[CH3",
        "Cq",
        "É",
        "C=",
        "=C",
        "C=.C",
    ],
)
def test_malformed_input_is_refused(smiles):
    with pytest.raises(InputError):
        lex(smiles)
