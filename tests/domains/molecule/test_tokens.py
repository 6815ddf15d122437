"""Tokens on atoms, bonds and syntax, and the parser that keeps written order."""

from pathlib import Path

import pytest

from isotrace.base.errors import InputError
from isotrace.domains.molecule.drawing import draw_molecule
from isotrace.domains.molecule.smiles import lex
from isotrace.domains.molecule.tokenizer import build_tokenizer
from isotrace.domains.molecule.tokens import begin, bond_of, parse, parse_or_begin, token_map

HARD = (Path(__file__).parents[2] / "data" / "hard_smiles.smi").read_text().split()


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["C[C@@H]([nH])[N+]"] * 2, min_count=2, max_length=512)


def encode(tokenizer, smiles: str):
    encoded = tokenizer(smiles, return_offsets_mapping=True)
    return tokenizer.convert_ids_to_tokens(encoded["input_ids"]), encoded["offset_mapping"]


def single(smiles: str) -> list[tuple[int, int]]:
    return [(i, i + 1) for i in range(len(smiles))]


@pytest.mark.parametrize("smiles", HARD)
def test_every_token_stands_for_what_is_written_there(tokenizer, smiles):
    tokens, offsets = encode(tokenizer, smiles)
    units = token_map(smiles, tokens, offsets)
    assert [unit.text for unit in units] == tokens
    assert [unit.kind for unit in units if unit.kind != "special"] == [unit.kind for unit in units[1:-1]]
    by_character = {at: item for item in lex(smiles) for at in range(item.start, item.end)}
    for unit in units[1:-1]:
        item = by_character[unit.start]
        assert (unit.kind, unit.atoms, unit.depth) == (item.kind, item.atoms, item.depth)
    assert {a for unit in units if unit.kind == "atom" for a in unit.atoms} == set(range(parse(smiles).GetNumAtoms()))


@pytest.mark.parametrize("smiles", HARD)
def test_partners_are_mutual(tokenizer, smiles):
    units = token_map(smiles, *encode(tokenizer, smiles))
    for unit in units:
        assert (unit.partner is not None) == (unit.kind in ("ring", "branch"))
        if unit.partner is not None:
            other = units[unit.partner]
            assert (other.kind, other.atoms) == (unit.kind, unit.atoms)
            assert other.start != unit.start


def test_special_tokens_stand_for_nothing(tokenizer):
    units = token_map("CO", *encode(tokenizer, "CO"))
    assert [(unit.text, unit.kind, unit.atoms) for unit in units] == [
        ("<cls>", "special", ()),
        ("C", "atom", (0,)),
        ("O", "atom", (1,)),
        ("<eos>", "special", ()),
    ]


def test_every_piece_of_a_bracket_stands_for_its_atom(tokenizer):
    units = token_map("C[13CH3]", *encode(tokenizer, "C[13CH3]"))[1:-1]
    assert [unit.text for unit in units] == ["C", "[", "1", "3", "C", "H", "3", "]"]
    assert [(unit.kind, unit.atoms) for unit in units] == [("atom", (0,))] + [("atom", (1,))] * 7


def test_a_token_of_many_lexemes_stands_for_the_atoms_it_writes():
    smiles = "CC(=O)Oc1ccccc1"
    units = token_map(smiles, ["CC", "(=O)", "Oc1", "ccccc", "1"], [(0, 2), (2, 6), (6, 9), (9, 14), (14, 15)])
    assert [(unit.kind, unit.atoms) for unit in units] == [
        ("atom", (0, 1)),
        ("atom", (2,)),
        ("atom", (3, 4)),
        ("atom", (5, 6, 7, 8, 9)),
        ("ring", (4, 9)),
    ]
    assert units[4].partner == 2


def test_a_token_without_atoms_stands_for_its_first_lexeme():
    units = token_map(
        "CC(C)(=O)C", ["CC", "(", "C", ")(=", "O", ")C"], [(0, 2), (2, 3), (3, 4), (4, 7), (7, 8), (8, 10)]
    )
    assert (units[3].kind, units[3].atoms, units[3].partner) == ("branch", (1,), 1)


def test_a_two_digit_ring_label_may_be_split():
    smiles = "C%10CC%10"
    units = token_map(smiles, list(smiles), single(smiles))
    assert [unit.kind for unit in units] == ["atom"] + ["ring"] * 3 + ["atom"] * 2 + ["ring"] * 3
    assert {unit.partner for unit in units[1:4]} == {6}
    assert {unit.partner for unit in units[6:]} == {1}


def test_a_mask_stands_for_what_it_replaced():
    masked = token_map("C=O", ["C", "<mask>", "O"], single("C=O"))[1]
    assert (masked.text, masked.kind, masked.atoms) == ("<mask>", "bond", (0, 1))


@pytest.mark.parametrize(
    ("tokens", "offsets"),
    [
        (["C", "C"], [(0, 1), (1, 2)]),  # truncated
        (["C", "O"], [(0, 1), (2, 3)]),  # a gap
        (["CC", "CO"], [(0, 2), (1, 3)]),  # an overlap
        (["CCO."], [(0, 4)]),  # past the end
        (["C", "C", "O"], [(0, 1), (2, 3), (1, 2)]),  # out of order
        (["C", "C", "O"], [(0, 1), (1, 2)]),  # a token without an offset
        (["<cls>", "<eos>"], [(0, 0), (0, 0)]),
    ],
)
def test_tokens_that_do_not_cover_the_string_are_refused(tokens, offsets):
    with pytest.raises(InputError):
        token_map("CCO", tokens, offsets)


def test_bonds_of_tokens():
    smiles = "C=1CCCCC=1.N"
    mol, units = parse(smiles), token_map(smiles, list(smiles), single(smiles))
    bonds = [bond_of(unit, mol) for unit in units]
    closure = mol.GetBondBetweenAtoms(0, 5).GetIdx()
    assert [bonds[i] for i, text in enumerate(smiles) if text in "=1"] == [closure] * 4
    assert all(bond is None for bond, text in zip(bonds, smiles, strict=True) if text not in "=1")


def test_a_mid_chain_bond_symbol():
    mol = parse("CC=O")
    assert bond_of(token_map("CC=O", list("CC=O"), single("CC=O"))[2], mol) == mol.GetBondBetweenAtoms(1, 2).GetIdx()


def test_two_atoms_in_one_token_are_no_bond():
    assert bond_of(token_map("CC", ["CC"], [(0, 2)])[0], parse("CC")) is None


def test_written_hydrogens_stay_atoms():
    assert [atom.GetSymbol() for atom in parse("[H]OC([2H])").GetAtoms()] == ["H", "O", "C", "H"]


def test_parse_ignores_surrounding_white_space():
    assert parse(" CCO\n").GetNumAtoms() == 3


def test_parse_perceives_aromaticity_and_stereochemistry():
    mol = parse("C1=CC=CC=C1[C@H](F)/C=C/C")
    assert [atom.GetIsAromatic() for atom in mol.GetAtoms()] == [True] * 6 + [False] * 5
    assert mol.GetAtomWithIdx(6).GetPropsAsDict(True, True)["_CIPCode"] in "RS"


@pytest.mark.parametrize(
    ("smiles", "reason"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("CC(C)(C)(C)C", "valence for atom # 1 C, 5"),
        ("c1cccc1", "kekulize"),
        ("cc", "non-ring atom 0 marked aromatic"),
        ("C11", "cannot parse"),
        ("C==C", "cannot parse"),
        ("C((C))C", "cannot parse"),
        ("C1CC", "never closed"),
        ("CCX", "character 3"),
        ("CC ethane", "character 3"),
    ],
)
def test_parse_says_why_in_one_line_and_rdkit_stays_silent(smiles, reason, capfd):
    with pytest.raises(InputError) as caught:
        parse(smiles)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


WHOLE = (
    "CC(=O)Oc1ccccc1C(=O)O", "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21", "C1=CC=C%10C=1CC%10",
    "C(=O)([O-])CC%(12)CC%(12).[Na+]",
    "CC1(C)S[C@@H]2[C@H](NC(=O)Cc3ccccc3)C(=O)N2[C@H]1C(=O)O", "F/C=C/Br", "c1ccc2[nH]c3ccccc3c2c1",
    "[13CH3:1][N+](C)(C)C",
)  # fmt: skip


@pytest.mark.parametrize("smiles", WHOLE)
def test_every_beginning_of_a_molecule_is_read(smiles):
    """Its atoms are the first of the molecule, but for one that is still being written."""
    elements = [atom.GetSymbol() for atom in parse(smiles).GetAtoms()]
    for end in range(1, len(smiles) + 1):
        text = smiles[:end]
        found = [atom.GetSymbol() for atom in begin(text).GetAtoms()]
        assert found[:-1] == elements[: len(found) - 1], text
        units = token_map(text, list(text), single(text), begun=True)
        assert sorted({atom for unit in units for atom in unit.atoms}) == list(range(len(found))), text
        draw_molecule(begin(text), dict.fromkeys(range(len(found)), 1.0), size=(100, 100), diverging=False)


@pytest.mark.parametrize("text", ["C)", "=C", "1", "C(C)(C)(C)(C)C", "C=)C", "(", "[Xx]", "C?", "F(C)C"])
def test_what_begins_no_molecule_is_refused(text):
    with pytest.raises(InputError):
        begin(text)


def test_a_molecule_is_no_beginning_and_a_beginning_is_taken_where_one_may_be():
    mol, why = parse_or_begin("CCO", None)
    assert (mol.GetNumAtoms(), why) == (3, None)
    assert "never closed" in parse_or_begin("c1ccc", None)[1]
    with pytest.raises(InputError, match="only a causal subject takes the beginning of a molecule, molm is none"):
        parse_or_begin("c1ccc", "molm")
    with pytest.raises(InputError, match="the SMILES is empty"):
        parse_or_begin("", None)
