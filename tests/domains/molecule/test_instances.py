"""Instances of concepts: counted by hand, against RDKit, and the same however a molecule is written."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.Chem import Descriptors, rdMolDescriptors
from rdkit.Chem.Scaffolds import MurckoScaffold

from isotrace.base.errors import InputError
from isotrace.domains.domain import Reading, domain_of
from isotrace.domains.molecule.atoms import ATOM_CONCEPTS
from isotrace.domains.molecule.smiles import lex
from isotrace.domains.molecule.tokens import parse
from isotrace.domains.molecule.vocabulary import concepts, patterns
from isotrace.domains.molecule.vocabulary.environments import environments, known_environments

HELD_OUT = [line.split()[0] for line in (Path(__file__).parents[2] / "data" / "heldout.smi").read_text().splitlines()]
MOLECULE = domain_of("molecule")
PLACE = {concept.name: i for i, concept in enumerate(MOLECULE.concepts)}
ASPIRIN, INDOLE, SPIRO = "CC(=O)Oc1ccccc1C(=O)O", "c1ccc2[nH]ccc2c1", "C1CCC2(C1)CC2"
NORBORNANE, JOINED = "C1CC2CCC1C2", "Cc1ccccc1CCC1CC1=O"


def read(smiles: str) -> Reading:
    """One token per lexeme."""
    items = lex(smiles)
    return MOLECULE.read(smiles, [item.text for item in items], [(item.start, item.end) for item in items])


def instances(reading: Reading, concept: str) -> list[tuple[int, ...]]:
    return [tokens for i, tokens in MOLECULE.label(reading).instances if i == PLACE[concept]]


def atoms_of(reading: Reading, tokens: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(sorted({atom for token in tokens for atom in reading.elements[token]}))


# SMILES, concept, atoms of each instance (numbered as written)
COUNTED = [
    (ASPIRIN, "element O", [(2,), (3,), (11,), (12,)]),
    (ASPIRIN, "6-membered ring", [(4, 5, 6, 7, 8, 9)]),
    (ASPIRIN, "aromatic ring", [(4, 5, 6, 7, 8, 9)]),
    (ASPIRIN, "heteroaromatic ring", []),
    (ASPIRIN, "ester", [(1, 2, 3)]),
    (ASPIRIN, "scaffold", [(4, 5, 6, 7, 8, 9)]),
    (ASPIRIN, "side chain", [(0, 1, 2, 3), (10, 11, 12)]),
    (INDOLE, "5-membered ring", [(3, 4, 5, 6, 7)]),
    (INDOLE, "heteroaromatic ring", [(3, 4, 5, 6, 7)]),
    (INDOLE, "fused ring system", [tuple(range(9))]),
    (INDOLE, "ring fusion atom", [(3,), (7,)]),
    (INDOLE, "atom in several rings", [(3,), (7,)]),
    (SPIRO, "spiro atom", [(3,)]),
    (SPIRO, "fused ring system", []),
    (SPIRO, "ring fusion atom", []),
    (NORBORNANE, "bridgehead atom", [(2,), (5,)]),
    (NORBORNANE, "5-membered ring", [(0, 1, 2, 5, 6), (2, 3, 4, 5, 6)]),
    ("C1CCC2CCCCC2C1", "bridgehead atom", []),
    ("C1CCC2CCCCC2C1", "fused ring system", [tuple(range(10))]),
    ("c1ccccc1-c1ccc2ccccc2c1", "fused ring system", [tuple(range(6, 16))]),
    ("C1CCCCCCCCCCC1", "macrocycle", [tuple(range(12))]),
    ("C1CCCCCCCCCCC1", "ring of 8 or more atoms", [tuple(range(12))]),
    ("C1CCCCCCCCCC1", "macrocycle", []),
    (JOINED, "scaffold", [tuple(range(1, 13))]),
    (JOINED, "linker between rings", [(7, 8)]),
    (JOINED, "side chain", [(0,)]),
    ("CCO.c1ccccc1", "side chain", []),
    ("F/C=C/Cl", "E double bond", [(1, 2)]),
    ("F/C=C\\Cl", "Z double bond", [(1, 2)]),
    ("FC=CCl", "E double bond", []),
    ("N[C@@H](C)C(=O)O", "S centre", [(1,)]),
    ("N[C@H](C)C(=O)O", "R centre", [(1,)]),
    ("[13CH3][2H]", "isotope label", [(0,), (1,)]),
    ("CC#N", "radius-1 C(#N)(-C)", [(1,)]),
    ("CC(=O)NC", "radius-1 C(-C)(-N)(=O)", [(1,)]),
    ("CC(=O)NC", "radius-1 NH(-C)(-C)", [(3,)]),
    ("CC(=O)Nc1ccccc1", "radius-2 NH(-C(-C)(=O))(-c(:c)(:c))", [(3,)]),
    ("[H]N(C(C)=O)c1ccccc1", "radius-2 NH(-C(-C)(=O))(-c(:c)(:c))", [(1,)]),
    ("CCC=O", "alert MCF aldehyde", [(2, 3)]),
    ("CN=NC", "alert PAINS azo A", [(1, 2)]),
    ("CC[N+](=O)[O-]", "alert NIBR nitro count 1", [(1, 2, 3, 4)]),
]


@pytest.mark.parametrize(("smiles", "concept", "atoms"), COUNTED)
def test_instances_counted_by_hand(smiles, concept, atoms):
    reading = read(smiles)
    found = [atoms_of(reading, tokens) for tokens in instances(reading, concept)]
    assert sorted(found) == sorted(atoms)


def test_pairs_hold_both_tokens():
    reading = read("C1CC(O)C1(N)C%11CC%11")
    assert [tuple(reading.units[i].start for i in pair) for pair in instances(reading, "pair of ring digits")] == [
        (1, 8),
        (13, 18),
    ]
    assert [tuple(reading.units[i].start for i in pair) for pair in instances(reading, "pair of parentheses")] == [
        (4, 6),
        (9, 11),
    ]
    assert instances(read("C[C@H](F)[C@@H](F)C"), "chirality mark @@") == [(5,)]


def test_a_bracket_in_pieces_is_one_group_and_a_token_each():
    reading = MOLECULE.read(
        "C[15NH2]", ["C", "[", "15", "N", "H2", "]"], [(0, 1), (1, 2), (2, 4), (4, 5), (5, 7), (7, 8)]
    )
    assert instances(reading, "primary amine") == [(1, 2, 3, 4, 5)]
    assert instances(reading, "element N") == [(1,), (2,), (3,), (4,), (5,)]


def test_instances_are_ascending_and_within_the_tokens():
    for smiles in HELD_OUT[::20]:
        reading = read(smiles)
        for concept, tokens in MOLECULE.label(reading).instances:
            assert MOLECULE.concepts[concept].kind == "token"
            assert list(tokens) == sorted(set(tokens))
            assert 0 <= tokens[0] <= tokens[-1] < len(reading.units)


@pytest.mark.parametrize("library", [patterns.functional_groups(), patterns.structural_alerts()])
def test_the_screen_in_front_of_the_search_loses_no_match(library):
    found = 0
    for smiles in HELD_OUT[::2]:
        mol = parse(smiles)
        every = [
            (name, match)
            for name, query in zip(library.names, library.queries, strict=True)
            for match in mol.GetSubstructMatches(query)
        ]
        assert library.matches(mol) == every
        found += len(every)
    assert found > 100


def test_functional_groups_are_rdkits_matches():
    reading = read("OC(=O)CC(=O)OCC(=O)O")
    expected = reading.parsed.GetSubstructMatches(Chem.MolFromSmarts("[CX3](=[OX1])[OX2H1]"))
    found = [atoms_of(reading, tokens) for tokens in instances(reading, "carboxylic acid")]
    assert sorted(found) == sorted(tuple(sorted(match)) for match in expected)
    assert len(found) == 2


def test_scaffold_ring_and_bridge_atoms_are_rdkits():
    for smiles in HELD_OUT[::3]:
        reading = read(smiles)
        labels = MOLECULE.label(reading)
        counts = Counter(MOLECULE.concepts[i].name for i, _ in labels.instances)
        assert counts["spiro atom"] == rdMolDescriptors.CalcNumSpiroAtoms(reading.parsed)
        assert counts["bridgehead atom"] == rdMolDescriptors.CalcNumBridgeheadAtoms(reading.parsed)
        assert counts["aromatic ring"] == rdMolDescriptors.CalcNumAromaticRings(reading.parsed)
        core = sum(len(atoms_of(reading, tokens)) for i, tokens in labels.instances if i == PLACE["scaffold"])
        assert core == MurckoScaffold.GetScaffoldForMol(reading.parsed).GetNumAtoms()


def seen(reading: Reading, original: tuple[int, ...]) -> Counter:
    """Instances of atom concepts, in the numbering of the molecule that `reading` is a spelling of."""
    return Counter(
        (i, tuple(sorted(original[atom] for atom in atoms_of(reading, tokens))))
        for i, tokens in MOLECULE.label(reading).instances
        if i < len(ATOM_CONCEPTS)
    )


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.sampled_from(HELD_OUT), st.integers(0, 2**16))
def test_atom_concepts_do_not_depend_on_the_spelling(smiles, seed):
    reading = read(smiles)
    for spelling in MOLECULE.spellings(reading, 1, seed):
        other = read(spelling.text)
        assert seen(other, spelling.original) == seen(reading, tuple(range(reading.n_elements)))
        np.testing.assert_allclose(MOLECULE.label(other).numbers, MOLECULE.label(reading).numbers, atol=1e-6)


def test_environments_tell_what_refinement_tells():
    names = dict(zip("abcdef", environments(parse("CCOC(=O)[O-]")), strict=True))
    assert names["a"] == ("CH3(-C)", "CH3(-CH2(-O))")
    assert names["b"] == ("CH2(-C)(-O)", "CH2(-CH3)(-O(-C))")
    assert names["d"] == ("C(-O)(-O)(=O)", "C(-O(-C))(-O-)(=O)")
    assert names["f"] == ("O-(-C)", "O-(-C(-O)(=O))")
    assert environments(parse("[H]C"))[0] == ("", "")
    assert environments(parse("[H]C"))[1] == environments(parse("C"))[0] == ("CH4", "CH4")
    assert Counter(known_environments().values()) == {1: 60, 2: 40}


def test_numbers_of_a_molecule():
    plain, explicit = (MOLECULE.label(read(s)).numbers for s in (ASPIRIN, Chem.MolToSmiles(Chem.AddHs(parse(ASPIRIN)))))
    assert np.isnan(plain[: len(concepts.TOKEN_CONCEPTS)]).all()
    np.testing.assert_allclose(plain[len(concepts.TOKEN_CONCEPTS) :], explicit[len(concepts.TOKEN_CONCEPTS) :])
    mol = Chem.MolFromSmiles(ASPIRIN)
    assert plain[PLACE["molecular weight"]] == pytest.approx(180.159, abs=1e-3)
    assert plain[PLACE["TPSA"]] == pytest.approx(63.6, abs=1e-6)
    assert plain[PLACE["logP"]] == pytest.approx(Descriptors.MolLogP(mol))
    assert plain[PLACE["molar refractivity"]] == pytest.approx(Descriptors.MolMR(mol))
    assert plain[PLACE["QED"]] == pytest.approx(Descriptors.qed(mol))
    assert plain[PLACE["heavy atoms"]] == 13


@pytest.mark.parametrize(
    ("concept", "has", "has_not"),
    [
        ("passes Lipinski's rules", ASPIRIN, "C" * 40),
        ("chiral molecule", "N[C@@H](C)C(=O)O", "NC(C)C(=O)O"),
        ("charged molecule", "C[NH3+]", "C[NH3+].[Cl-]"),
        ("macrocyclic molecule", "C1CCCCCCCCCCC1", "C1CCCCC1"),
        ("ring-free molecule", "CCO", ASPIRIN),
        ("several components", "C.C", "CC"),
    ],
)
def test_classes(concept, has, has_not):
    assert [MOLECULE.label(read(s)).numbers[PLACE[concept]] for s in (has, has_not)] == [1.0, 0.0]


def test_a_library_with_a_pattern_that_cannot_be_compiled_is_refused():
    with pytest.raises(InputError, match="SMARTS"):
        patterns.Patterns([("broken", "C(")])
