"""Which atoms two molecules share, which changed, and which token stands where."""

import re

import numpy as np
import pytest
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.domains.domain import domain_of
from isotrace.domains.molecule.alignment import in_order
from isotrace.domains.molecule.smiles import LEXEME
from isotrace.domains.molecule.spelling import spellings

MOLECULE = domain_of("molecule")


def reading(text):
    """One token per lexeme, between a begin and an end token."""
    spans = [(0, 0), *(match.span() for match in LEXEME.finditer(text)), (len(text), len(text))]
    tokens = ["<cls>", *(text[a:b] for a, b in spans[1:-1]), "<eos>"]
    return MOLECULE.read(text, tokens, spans)


def aligned(a, b):
    return MOLECULE.align(reading(a), reading(b))


@pytest.mark.parametrize(
    ("a", "b", "changed", "shared"),
    [
        ("Clc1ccccc1C(=O)O", "Fc1ccccc1C(=O)O", ({0}, {0}), 9),
        ("CC(=O)Nc1ccccc1", "CC(=O)Oc1ccccc1", ({3}, {3}), 9),  # in the middle: both ends are common
        ("c1ccncc1CC", "c1ccccc1CC", ({3}, {3}), 7),  # in a ring
        ("O=C(O)c1ccccc1", "O=C([O-])c1ccccc1", ({2}, {2}), 8),  # a charge
        ("OCCc1ccccc1", "COCCc1ccccc1", (set(), {0}), 9),  # only the second has more
        ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", ({1}, {1}), 5),
        ("N[C@@H](CO)C(=O)O", "SC[C@H](N)C(=O)O", ({3}, {0}), 6),  # the same centre, written in another order
        ("C/C=C/C", "C/C=C\\C", ({1, 2}, {1, 2}), 2),
        ("CC/C=C/CF", "CC/C=C/CCl", ({5}, {5}), 5),
        ("[13CH3]CCO", "CCCO", ({0}, {0}), 3),
        ("OC(C)F", "O[C@H](C)F", ({1}, {1}), 3),
    ],
)
def test_what_changed(a, b, changed, shared):
    found = aligned(a, b)
    assert found.changed == changed
    assert found.n_shared == shared
    turned = aligned(b, a)
    assert (turned.changed, turned.n_shared) == (changed[::-1], shared)


def test_tokens_follow_their_atoms_and_say_the_same():
    found = aligned("CC(=O)Nc1ccccc1", "CC(=O)Oc1ccccc1")
    assert found.partner == tuple(range(17))
    # the chloride's branch has its partner, the nitro group's own branch has none
    a, b = reading("Clc1ccc(Cl)cc1C=O"), reading("Clc1ccc([N+](=O)[O-])cc1C=O")
    places = MOLECULE.align(a, b).partner
    assert [b.units[p].text for p in places if p is not None] == [
        "<cls>", "Cl", "c", "1", "c", "c", "c", "(", "[N+]", "c", "c", "1", "C", "=", "O", "<eos>"
    ]  # fmt: skip
    assert [a.units[i].text for i, p in enumerate(places) if p is None] == [")"]


def test_a_ring_digit_has_its_partner_by_the_atoms_it_joins():
    a, b = reading("C1CCC(F)CC1"), reading("C3CCC(Cl)CC3")
    assert MOLECULE.align(a, b).partner == tuple(range(len(a.units)))
    bond = aligned("CCC=CCO", "CCCCCO").partner
    assert bond[4] is None, "a double bond has no partner where there is none"


@pytest.mark.parametrize("smiles", ["CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21", "C[C@H](N)C(=O)Nc1ccc(F)cc1"])
def test_another_spelling_of_either_shares_the_same_atoms(smiles):
    mol = MOLECULE.read(smiles, [smiles], [(0, len(smiles))]).parsed
    other = smiles.replace("Cl", "Br").replace("F", "I")
    expected = aligned(smiles, other)
    assert not expected.notes
    for spelling in spellings(mol, 8, seed=0):
        found = aligned(spelling.smiles, other)
        assert {spelling.original[i] for i in found.changed[0]} == expected.changed[0]
        assert found.changed[1] == expected.changed[1]
        assert found.n_shared == expected.n_shared
        # every common atom is laid on itself up to symmetry
        ranks = list(Chem.CanonicalRankAtoms(mol, breakTies=False))
        a, b = reading(spelling.smiles), reading(other)
        for token, partner in enumerate(found.partner):
            if partner is not None and a.elements[token] and not found.changed[0].intersection(a.elements[token]):
                (own,), (there,) = a.elements[token], b.elements[partner]
                assert ranks[spelling.original[own]] == ranks[there]


def test_another_order_is_told_and_mended():
    (note,) = aligned("CC(=O)Nc1ccccc1", "c1ccccc1OC(=O)C").notes
    assert "4 of 9 common atoms stand in another order" in note
    better = note.rpartition(" as ")[2].rstrip(".")
    assert Chem.CanonSmiles(better) == Chem.CanonSmiles("c1ccccc1OC(=O)C")
    assert not aligned("CC(=O)Nc1ccccc1", better).notes


def test_there_and_back():
    found = aligned("NCCc1ccc(O)cc1", "NCCc1ccc(OC)cc1")
    back = found.back(17)
    assert all(back[j] == i for i, j in enumerate(found.partner) if j is not None)
    assert sum(i is not None for i in back) == sum(j is not None for j in found.partner)


@pytest.mark.parametrize(
    ("a", "b", "reason"),
    [
        ("CCO", "OCC", "are the same molecule"),
        ("CCO", "c1ccccc1", "share 0 connected atoms"),
        ("CCO", "NN", "share 0 connected atoms"),
    ],
)
def test_what_cannot_be_compared(a, b, reason):
    with pytest.raises(InputError, match=reason):
        aligned(a, b)


def test_the_longest_order():
    assert len(in_order([3, 1, 2, 5, 4])) == 3
    assert in_order([]) == []


def test_both_are_drawn_in_the_same_place():
    a, b = reading("Clc1ccccc1C(=O)O"), reading("Fc1ccccc1C(=O)O")
    weights = [[0.0] * len(a.units), [0.0] * len(b.units)]
    weights[0][1], weights[1][1] = -1.0, 0.5
    found = MOLECULE.draw_pair(a, b, MOLECULE.align(a, b), weights, 1.0)
    for svg, colour in zip(found, ('fill="#4a8fd3"', 'fill="#f4c194"'), strict=True):
        assert svg.count('class="outlined" data-element="0"') == 1
        assert colour in svg
    places = [
        np.asarray(re.findall(r'class="hit" data-element="\d+" cx="([\d.]+)" cy="([\d.]+)"', svg), float)
        for svg in found
    ]
    np.testing.assert_allclose(
        places[0][1:], places[1][1:], atol=1.0
    )  # pixels; letters of unlike width shift a drawing
