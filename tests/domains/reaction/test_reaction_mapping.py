"""Atom maps carried to the unmapped text, and what changes, by hand and however the reaction is written."""

import numpy as np
import pytest
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.domains.molecule.spelling import fragments, respelled
from isotrace.domains.reaction.mapping import changes, mapping
from isotrace.domains.reaction.tokens import parse_reaction

ACYLATION = "CC(=O)Cl.OCc1ccccc1>>CC(=O)OCc1ccccc1"
ACYLATION_MAPPED = (
    "Cl[C:2]([CH3:1])=[O:3].[OH:4][CH2:5][c:6]1[cH:7][cH:8][cH:9][cH:10][cH:11]1"
    ">>[CH3:1][C:2](=[O:3])[O:4][CH2:5][c:6]1[cH:7][cH:8][cH:9][cH:10][cH:11]1"
)
REDUCTION = "CC(=O)c1ccccc1.[BH4-].[Na+]>>CC(O)c1ccccc1"
REDUCTION_MAPPED = (
    "[CH3:1][C:2](=[O:3])[c:4]1[cH:5][cH:6][cH:7][cH:8][cH:9]1.[BH4-].[Na+]"
    ">>[CH3:1][CH:2]([OH:3])[c:4]1[cH:5][cH:6][cH:7][cH:8][cH:9]1"
)
QUATERNISATION = "CI.CN(C)C>>C[N+](C)(C)C"
QUATERNISATION_MAPPED = "[CH3:1]I.[CH3:2][N:3]([CH3:4])[CH3:5]>>[CH3:1][N+:3]([CH3:2])([CH3:4])[CH3:5]"
CASES = [(ACYLATION, ACYLATION_MAPPED), (REDUCTION, REDUCTION_MAPPED), (QUATERNISATION, QUATERNISATION_MAPPED)]


def found(text: str, mapped: str):
    reaction = parse_reaction(text)
    return changes(reaction, mapping(reaction, mapped))


def test_acylation_by_hand():
    # CC(=O)Cl . O C c1ccccc1 >> C C (=O) O C c1ccccc1
    # 01  2 3    4 5 6             12 13 14 15 16
    result = found(ACYLATION, ACYLATION_MAPPED)
    assert result.centre == (1, 4, 13, 15)
    assert result.leaving == ((3,),)
    assert result.broken == ((1, 3),)
    assert result.formed == ((13, 15),)
    assert result.altered == ()
    assert result.contributing == (0, 1)
    assert {i: result.partner[i] for i in (0, 1, 2, 4, 5)} == {0: 12, 1: 13, 2: 14, 4: 15, 5: 16}
    assert all(result.partner[j] == i for i, j in result.partner.items())


def test_reduction_by_hand():
    result = found(REDUCTION, REDUCTION_MAPPED)
    assert result.centre == (1, 2, 12, 13)
    assert result.altered == ((1, 2), (12, 13))
    assert (result.broken, result.formed, result.leaving) == ((), (), ())
    assert result.contributing == (0,)  # the borohydride gives no atom to the product


def test_a_charge_is_a_change():
    result = found(QUATERNISATION, QUATERNISATION_MAPPED)
    assert set(result.centre) == {0, 3, result.partner[0], result.partner[3]}
    assert result.leaving == ((1,),)


def rewritten(mapped: str, rng: np.random.Generator) -> str:
    """The mapped reaction with every component respelled and each side in another order."""
    reaction = parse_reaction(mapped)
    parts = list(zip(fragments(reaction.mol), reaction.sides, strict=True))
    sides = []
    for side in ("reactant", "reagent", "product"):
        here = [respelled(*part, rng).smiles for part, s in parts if s == side]
        sides.append(".".join(here[i] for i in rng.permutation(len(here))))
    return ">".join(sides)


def environment(reaction, atoms) -> list[tuple]:
    """What an atom is up to symmetry, so that equal atoms of one molecule may stand for one another."""
    ranks = list(Chem.CanonicalRankAtoms(reaction.mol, breakTies=False))
    return sorted(ranks[a] for a in atoms)


@pytest.mark.parametrize(("text", "mapped"), CASES)
def test_the_order_of_writing_the_map_does_not_matter(text, mapped):
    reaction = parse_reaction(text)
    first = found(text, mapped)
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = found(text, rewritten(mapped, rng))
        assert environment(reaction, other.centre) == environment(reaction, first.centre)
        for name in ("leaving", "broken", "formed", "altered"):
            assert sorted(environment(reaction, part) for part in getattr(other, name)) == sorted(
                environment(reaction, part) for part in getattr(first, name)
            )
        assert other.contributing == first.contributing


@pytest.mark.parametrize(("text", "mapped"), CASES)
def test_maps_carried_over_agree_with_maps_read_in_place(text, mapped):
    """The mapped text itself is a reaction whose numbers need no matching."""
    reaction = parse_reaction(mapped)
    numbers = tuple(atom.GetAtomMapNum() for atom in reaction.mol.GetAtoms())
    direct, carried = changes(reaction, numbers), found(text, mapped)
    for name in ("centre", "leaving", "broken", "formed", "altered", "contributing", "partner"):
        assert len(getattr(direct, name)) == len(getattr(carried, name))


def test_reagents_may_stand_on_either_side_of_the_first_arrow():
    moved = REDUCTION_MAPPED.replace(".[BH4-].[Na+]>>", ">[BH4-].[Na+]>")
    assert found(REDUCTION, moved) == found(REDUCTION, REDUCTION_MAPPED)


def test_of_equal_molecules_the_mapped_one_is_the_reactant():
    text, mapped = "O.O.C=C>>CCO", "O.[OH2:3].[CH2:1]=[CH2:2]>>[CH3:1][CH2:2][OH:3]"
    result = found(text, mapped)
    assert result.contributing == (0, 2)


@pytest.mark.parametrize(
    ("text", "mapped", "says"),
    [
        ("CCO>>CC", "[CH3:1][CH3:2]>>[CH3:1][CH3:2]", "lacks 'CCO' among its reactants"),
        ("CC>>CC", "CC>>CC", "no atom-map number"),
        ("CC>>CC", "[CH3:1][CH3:1]>>[CH3:1]C", "1 stands twice among the reactants"),
        ("CC>>CC", "[CH3:1]C>>[CH3:1][CH3:1]", "1 stands twice among the products"),
        ("CC>>CC", "[CH3:1][CH3:2]", "0 arrows"),
    ],
)
def test_a_map_that_does_not_fit_is_refused(text, mapped, says):
    with pytest.raises(InputError, match=says):
        found(text, mapped)
