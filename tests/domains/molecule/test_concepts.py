"""Concepts of tokens: each functional group against a molecule that has it and a near miss that has not."""

from pathlib import Path

import numpy as np
import pytest
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.domains.molecule.atoms import ATOM_CONCEPTS
from isotrace.domains.molecule.smiles import lex
from isotrace.domains.molecule.tokenizer import build_tokenizer
from isotrace.domains.molecule.tokens import parse, token_map
from isotrace.domains.molecule.vocabulary.concepts import CONCEPTS, label_molecule
from isotrace.domains.molecule.vocabulary.patterns import functional_groups

HARD = (Path(__file__).parents[2] / "data" / "hard_smiles.smi").read_text().split()
NAMES = [concept.name for concept in CONCEPTS]

# group: (has it, number of atoms in the group there, has it not)
GROUPS: dict[str, tuple[str, int, str]] = {
    "hydroxyl": ("CCO", 1, "CC(=O)O"),
    "phenol": ("Oc1ccccc1", 2, "OCc1ccccc1"),
    "primary alcohol": ("CCO", 2, "CC(C)O"),
    "secondary alcohol": ("CC(O)C", 2, "COC(C)O"),
    "tertiary alcohol": ("CC(C)(C)O", 2, "CC(C)CO"),
    "carboxylic acid": ("CC(=O)O", 3, "CC(=O)OC"),
    "carboxylate": ("CC(=O)[O-]", 3, "CC(=O)O"),
    "ester": ("CC(=O)OC", 3, "CC(=O)OC(C)=O"),
    "lactone": ("O=C1CCCO1", 3, "CC(=O)OC1CCC1"),
    "primary amide": ("CC(N)=O", 3, "CC(=O)NC"),
    "secondary amide": ("CC(=O)NC", 3, "CC(=O)NC(C)=O"),
    "tertiary amide": ("CC(=O)N(C)C", 3, "CNC(C)=O"),
    "lactam": ("O=C1CCCN1", 3, "CC(=O)N1CCC1"),
    "beta-lactam": ("O=C1CCN1", 5, "O=C1CCCN1"),
    "imide": ("O=C1CCC(=O)N1", 5, "NC(=O)NC(C)=O"),
    "urea": ("NC(N)=O", 4, "NC(=O)OC"),
    "thiourea": ("NC(N)=S", 4, "NC(N)=O"),
    "carbamate": ("NC(=O)OC", 4, "NC(=O)NC"),
    "acrylamide": ("C=CC(N)=O", 5, "C=CCC(N)=O"),
    "hydroxamic acid": ("CC(=O)NO", 4, "CC(=O)NOC"),
    "sulfonamide": ("CS(N)(=O)=O", 4, "NS(N)(=O)=O"),
    "sulfone": ("CS(C)(=O)=O", 3, "CS(N)(=O)=O"),
    "sulfoxide": ("CS(C)=O", 2, "CS(C)(=O)=O"),
    "sulfonic acid": ("CS(=O)(=O)O", 4, "CS(=O)(=O)OC"),
    "thiol": ("CCS", 1, "CC(=O)S"),
    "thioether": ("CSC", 1, "CC(=O)SC"),
    "disulfide": ("CSSC", 2, "CSC"),
    "nitro": ("CN(=O)=O", 3, "CO[N+](=O)[O-]"),
    "nitrile": ("CC#N", 2, "C[N+]#[C-]"),
    "azide": ("CN=[N+]=[N-]", 3, "C=[N+]=[N-]"),
    "azo": ("CN=NC", 2, "CC=NN"),
    "hydrazine": ("CNNC", 2, "CC(=O)NN"),
    "hydrazide": ("CC(=O)NN", 4, "CC(=O)NC"),
    "hydrazone": ("CC=NN", 3, "CC=NO"),
    "primary amine": ("CCN", 1, "CC(N)=O"),
    "secondary amine": ("CNC", 1, "CNc1ccccc1"),
    "tertiary amine": ("CN(C)C", 1, "CC(=O)N(C)C"),
    "protonated amine": ("C[NH3+]", 1, "C[N+](C)(C)C"),
    "quaternary ammonium": ("C[N+](C)(C)C", 1, "C[NH+](C)C"),
    "aniline": ("Nc1ccccc1", 2, "CC(=O)Nc1ccccc1"),
    "amidine": ("CC(N)=N", 3, "NC(N)=N"),
    "guanidine": ("NC(N)=N", 4, "CC(N)=N"),
    "imine": ("CC=NC", 2, "CC=NO"),
    "oxime": ("CC=NO", 3, "CC=NOC"),
    "aldehyde": ("CC=O", 2, "CC(C)=O"),
    "ketone": ("CC(C)=O", 2, "CC=O"),
    "enone": ("CC(=O)C=C", 4, "CC(=O)CC=C"),
    "ether": ("CCOC", 1, "CC(=O)OC"),
    "aryl ether": ("COc1ccccc1", 2, "CC(=O)Oc1ccccc1"),
    "epoxide": ("C1CO1", 3, "C1COC1"),
    "acetal": ("COC(C)OC", 3, "COC(C)O"),
    "anhydride": ("CC(=O)OC(C)=O", 5, "CC(=O)OCC=O"),
    "acyl halide": ("CC(=O)Cl", 3, "CC(=O)CCl"),
    "aryl fluoride": ("Fc1ccccc1", 2, "FCc1ccccc1"),
    "aryl chloride": ("Clc1ccccc1", 2, "Fc1ccccc1"),
    "aryl bromide": ("Brc1ccccc1", 2, "BrCc1ccccc1"),
    "aryl iodide": ("Ic1ccccc1", 2, "ICc1ccccc1"),
    "alkyl halide": ("CCBr", 2, "FC(F)(F)c1ccccc1Br"),
    "trifluoromethyl": ("CC(F)(F)F", 4, "FC(F)(F)F"),
    "difluoromethyl": ("CC(F)F", 3, "CC(F)(F)F"),
    "tert-butyl": ("CC(C)(C)O", 4, "CC(C)O"),
    "isopropyl": ("CC(C)O", 3, "CC(C)(C)O"),
    "methoxy": ("COCC", 2, "CCOCC"),
    "vinyl": ("C=CC", 2, "CC=CC"),
    "alkene": ("CC=CC", 2, "c1ccccc1"),
    "alkyne": ("CC#CC", 2, "CC#N"),
    "phosphate": ("COP(=O)(O)O", 5, "CP(=O)(O)O"),
    "phosphonate": ("CP(=O)(O)O", 4, "COP(=O)(O)O"),
    "boronic acid": ("OB(O)c1ccccc1", 3, "COB(OC)c1ccccc1"),
    "boronate ester": ("COB(OC)c1ccccc1", 3, "OB(O)c1ccccc1"),
    "silane": ("C[Si](C)(C)C", 1, "CC(C)(C)C"),
    "N-oxide": ("[O-][n+]1ccccc1", 2, "C[N+](=O)[O-]"),
    "benzene ring": ("Cc1ccccc1", 6, "c1ccncc1"),
    "naphthalene": ("c1ccc2ccccc2c1", 10, "c1ccc(-c2ccccc2)cc1"),
    "pyridine": ("c1ccncc1", 6, "O=c1cccc[nH]1"),
    "2-pyridone": ("O=c1cccc[nH]1", 7, "O=c1cc[nH]cc1"),
    "pyrimidine": ("c1cncnc1", 6, "c1cnccn1"),
    "pyrazine": ("c1cnccn1", 6, "c1ccnnc1"),
    "pyridazine": ("c1ccnnc1", 6, "c1cncnc1"),
    "imidazole": ("c1c[nH]cn1", 5, "c1cn[nH]c1"),
    "pyrazole": ("c1cn[nH]c1", 5, "c1c[nH]cn1"),
    "thiazole": ("c1cscn1", 5, "c1cocn1"),
    "oxazole": ("c1cocn1", 5, "c1cnoc1"),
    "isoxazole": ("c1cnoc1", 5, "c1cocn1"),
    "1,2,4-oxadiazole": ("c1ncon1", 5, "c1nnco1"),
    "1,2,3-triazole": ("c1cnn[nH]1", 5, "c1nc[nH]n1"),
    "1,2,4-triazole": ("c1nc[nH]n1", 5, "c1cnn[nH]1"),
    "tetrazole": ("c1nn[nH]n1", 5, "c1nc[nH]n1"),
    "furan": ("c1ccoc1", 5, "C1CCOC1"),
    "thiophene": ("c1ccsc1", 5, "c1ccoc1"),
    "pyrrole": ("c1cc[nH]c1", 5, "C1CCNC1"),
    "indole": ("c1ccc2[nH]ccc2c1", 9, "c1ccc2[nH]cnc2c1"),
    "benzimidazole": ("c1ccc2[nH]cnc2c1", 9, "c1ccc2[nH]ccc2c1"),
    "quinoline": ("c1ccc2ncccc2c1", 10, "c1ccc2cnccc2c1"),
    "benzodioxole": ("c1ccc2OCOc2c1", 9, "c1ccc2OCCOc2c1"),
    "piperidine": ("C1CCNCC1", 6, "C1CNCCN1"),
    "piperazine": ("C1CNCCN1", 6, "C1CNCCO1"),
    "morpholine": ("C1CNCCO1", 6, "C1CNCCN1"),
    "pyrrolidine": ("C1CCNC1", 5, "c1cc[nH]c1"),
    "azetidine": ("C1CNC1", 4, "C1CCNC1"),
    "tetrahydrofuran": ("C1CCOC1", 5, "c1ccoc1"),
    "cyclopropyl": ("CC1CC1", 3, "CC1CO1"),
    "cyclohexyl": ("CC1CCCCC1", 6, "C1CCNCC1"),
}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(["[C@@H]([nH])"] * 2, min_count=2, max_length=512)


def encode(tokenizer, smiles: str):
    encoded = tokenizer(smiles, return_offsets_mapping=True)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    return token_map(smiles, tokens, encoded["offset_mapping"])


def carried(smiles: str, units, mol) -> np.ndarray:
    """Bool `[tokens, concepts]`: which tokens lie in an instance of each concept."""
    result = np.zeros((len(units), len(CONCEPTS)), dtype=bool)
    for concept, tokens in label_molecule(smiles, units, mol).instances:
        result[list(tokens), concept] = True
    return result


def written(smiles: str, concept: str) -> list[str]:
    """Texts of the lexemes that carry `concept`, each lexeme one token."""
    items = lex(smiles)
    units = token_map(smiles, [item.text for item in items], [(item.start, item.end) for item in items])
    column = carried(smiles, units, parse(smiles))[:, NAMES.index(concept)]
    return [unit.text for unit, has in zip(units, column, strict=True) if has]


def test_every_functional_group_has_a_case():
    assert set(GROUPS) == set(functional_groups().names)


@pytest.mark.parametrize("group", GROUPS)
def test_functional_group(group):
    has, size, has_not = GROUPS[group]
    assert len(written(has, group)) == size
    assert written(has_not, group) == []


@pytest.mark.parametrize("group", GROUPS)
def test_functional_groups_do_not_depend_on_written_hydrogens(group):
    has, _, has_not = GROUPS[group]
    for smiles in (has, has_not):
        explicit = Chem.MolToSmiles(Chem.AddHs(parse(smiles)))
        assert len(written(explicit, group)) == len(written(smiles, group)), explicit


def test_names_are_unique():
    assert len(set(NAMES)) == len(NAMES)


# SMILES, concept, texts that carry it
CARRIED = [
    ("CC(=O)Oc1ccc(Cl)cc1", "element C", ["C", "C", "c", "c", "c", "c", "c", "c"]),
    ("CC(=O)Oc1ccc(Cl)cc1", "element Cl", ["Cl"]),
    ("[Fe+2].[Na]Cl", "other element", ["[Fe+2]", "[Na]"]),
    ("[H]C", "element H", ["[H]"]),
    ("C1=CC=CC=C1N", "aromatic atom", ["C"] * 6),
    ("c1cc[nH]c1C", "aromatic N", ["[nH]"]),
    ("C1CC1c1ccccc1", "aliphatic ring atom", ["C"] * 3),
    ("C1CC1c1ccccc1", "3-membered ring", ["C"] * 3),
    ("C1CC1c1ccccc1", "6-membered ring", ["c"] * 6),
    ("C1CCCCCCCC1O", "ring of 8 or more atoms", ["C"] * 9),
    ("c1ccc2[nH]ccc2c1", "atom in several rings", ["c", "c"]),
    ("CC1CC1", "non-ring atom", ["C"]),
    ("C[N+](=O)[O-]", "positive charge", ["[N+]"]),
    ("C[N+](=O)[O-]", "negative charge", ["[O-]"]),
    ("N[C@@H](C)C(=O)O", "chiral centre", ["[C@@H]"]),
    ("C[C@H](C)O", "chiral centre", []),  # two equal substituents: no centre
    ("CC#N", "sp", ["C", "N"]),
    ("CC=O", "sp2", ["C", "O"]),
    ("CC=O", "sp3", ["C"]),
    ("CCO", "hydrogen count 3", ["C"]),
    ("[H]C([H])([H])O", "hydrogen count 3", ["C"]),
    ("CCO", "hydrogen count 2", ["C"]),
    ("CCO", "hydrogen count 1", ["O"]),
    ("CCF", "hydrogen count 0", ["F"]),
    ("CC(C)(C)F", "degree 4", ["C"]),
    ("[H]C([H])([H])O", "degree 1", ["C", "O", "[H]", "[H]", "[H]"]),
    ("C=CC#N", "double bond symbol", ["="]),
    ("C=CC#N", "triple bond symbol", ["#"]),
    ("F/C=C/[O-]", "single bond symbol", []),
    ("F/C=C\\F", "up bond symbol", ["/"]),
    ("F/C=C\\F", "down bond symbol", ["\\"]),
    ("CC(C)(C)F", "branch opening", ["(", "("]),
    ("CC(C)(C)F", "branch closing", [")", ")"]),
    ("C(N(O)F)C", "branch depth 1", ["(", "N", "F", ")"]),
    ("C(N(O)F)C", "branch depth 2", ["(", "O", ")"]),
    ("C(N(B(F)O)F)C", "branch depth 3 or more", ["(", "F", ")"]),
    ("C(N(O)F)C", "atom bearing a branch", ["C", "N"]),
    ("CN(=O)=O", "atom after a branch", ["O"]),
    ("CC(O)(F)Cl", "atom after a branch", ["Cl"]),
    ("C1CC2C1C2", "ring opening", ["1", "2"]),
    ("C1CC2C1C2", "ring closing", ["1", "2"]),
    ("C1CC2C1C2", "ring digit 2", ["2", "2"]),
    ("C%10CC%10", "ring digit 1", []),
    ("O1CC1N", "atom bearing a ring digit", ["O", "C"]),
    ("O1CC1N", "token beside a ring digit", ["O", "C", "C", "N"]),
    ("[Na+].[Cl-]", "dot", ["."]),
    ("c1cc[nH]c1", "bracket atom", ["[nH]"]),
    ("CON", "first token", ["C"]),
    ("CON", "last token", ["N"]),
]


@pytest.mark.parametrize(("smiles", "concept", "texts"), CARRIED)
def test_concept(smiles, concept, texts):
    assert sorted(written(smiles, concept)) == sorted(texts)


@pytest.mark.parametrize("smiles", HARD)
def test_only_atom_tokens_carry_atom_concepts(tokenizer, smiles):
    units = encode(tokenizer, smiles)
    is_atom = np.array([unit.kind == "atom" for unit in units])
    carries = carried(smiles, units, parse(smiles))[:, : len(ATOM_CONCEPTS)].any(axis=1)
    assert not carries[~is_atom].any()
    assert carries[is_atom].all()


def test_pieces_of_a_bracket_carry_what_their_atom_has(tokenizer):
    units = encode(tokenizer, "C[13CH3]")
    rows = carried("C[13CH3]", units, parse("C[13CH3]"))
    bracket = rows[2:9, NAMES.index("bracket atom")]
    assert bracket.all()
    assert not rows[[0, 1, 9], NAMES.index("bracket atom")].any()
    assert rows[2:9, NAMES.index("hydrogen count 3")].all()


def test_special_tokens(tokenizer):
    rows = carried("CO", encode(tokenizer, "CO"), parse("CO"))
    assert [NAMES[i] for i in np.flatnonzero(rows[0])] == ["special token at the start"]
    assert [NAMES[i] for i in np.flatnonzero(rows[3])] == ["special token at the end"]
    assert rows[:, NAMES.index("first token")].tolist() == [False, True, False, False]
    assert rows[:, NAMES.index("last token")].tolist() == [False, False, True, False]


@pytest.mark.parametrize("smiles", HARD)
def test_masking_changes_no_concept(tokenizer, smiles):
    encoded = tokenizer(smiles, return_offsets_mapping=True)
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    masked = ["<mask>" if 0 < i < len(tokens) - 1 else text for i, text in enumerate(tokens)]
    mol = parse(smiles)
    plain, hidden = (
        carried(smiles, token_map(smiles, texts, encoded["offset_mapping"]), mol) for texts in (tokens, masked)
    )
    assert np.array_equal(plain, hidden)


def test_a_token_of_two_atoms_carries_what_either_has():
    units = token_map("CO", ["CO"], [(0, 2)])
    row = carried("CO", units, parse("CO"))[0]
    assert row[[NAMES.index("element C"), NAMES.index("element O")]].all()


def test_tokens_of_another_molecule_are_refused(tokenizer):
    with pytest.raises(InputError):
        label_molecule("CCO", encode(tokenizer, "CCO"), parse("CC"))
