"""Balances by hand and against sympy, and what a reaction lacks."""

from math import gcd, lcm

import numpy as np
import pytest
import sympy
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.domains.reaction.balance import FREE, balances, composition, null_space, total
from isotrace.domains.reaction.completeness import completeness, contained, formula, species
from isotrace.domains.reaction.tokens import parse_reaction


def made(text: str) -> list[dict[str, int]]:
    return [composition(Chem.MolFromSmiles(part)) for part in text.split(".")]


def test_composition_counts_hydrogens_isotopes_and_charge():
    assert composition(Chem.MolFromSmiles("[13CH3]C([2H])=O")) == {"13C": 1, "C": 1, "O": 1, "H": 3, "2H": 1}
    assert composition(Chem.MolFromSmiles("[NH4+]")) == {"N": 1, "H": 4, "charge": 1}
    assert total(made("[Na+].[Cl-].O.O")) == {"Na": 1, "Cl": 1, "O": 2, "H": 4}
    with pytest.raises(InputError, match="placeholder"):
        composition(Chem.MolFromSmiles("*C"))


def test_null_space_is_that_of_sympy():
    rng = np.random.default_rng(0)
    for _ in range(500):
        shape, rank = rng.integers(1, 6, 2), int(rng.integers(1, 5))
        matrix = rng.integers(-3, 4, (shape[0], rank)) @ rng.integers(-3, 4, (rank, shape[1]))
        expected = []
        for vector in sympy.Matrix(matrix).nullspace():
            scale = lcm(*(int(value.q) for value in vector))
            whole = [int(value * scale) for value in vector]
            expected.append(tuple(value // gcd(*whole) for value in whole))
        assert null_space(matrix) == expected
        assert all(gcd(*vector) == 1 for vector in null_space(matrix))
    assert null_space(np.zeros((3, 0), np.int64)) == []
    assert null_space(np.zeros((0, 2), np.int64)) == [(1, 0), (0, 1)]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("C.O=O", "O=C=O.O", [(1, 2, 1, 2)]),
        ("CC(=O)O.CCO", "CC(=O)OCC.O", [(1, 1, 1, 1)]),
        ("CC(=O)O.CCO", "CC(=O)OCC", []),
        ("[13CH4].O=O", "[13C](=O)=O.O", [(1, 2, 1, 2)]),
        ("[13CH4].O=O", "C(=O)=O.O", []),
        ("[Ag+].[Cl-]", "[Ag]Cl", [(1, 1, 1)]),
        ("[Fe+3].[Cu]", "[Fe+2].[Cu+2]", [(2, 1, 2, 1)]),
        ("[Fe+3]", "[Fe+2]", []),
        ("CC", "C", []),
        ("[H][H].[H][H].O=O", "O", [(1, 1, 1, 2)]),  # a species written twice: any share of it
        ("C.C", "C.C", [(1, 1, 1, 1)]),
    ],
)
def test_balances_by_hand(before, after, expected):
    assert balances(made(before), made(after)) == expected


def test_half_reactions():
    permanganate = made("[O-][Mn](=O)(=O)=O")
    acid, base = [*FREE["acid"].values()], [*FREE["base"].values()]
    assert balances(permanganate, made("[Mn+2]"), free=acid) == [(1, 1, 5, 8, -4)]
    assert balances(permanganate, made("O=[Mn]=O"), free=base) == [(1, 1, 3, -4, 2)]
    assert balances(made("[Cu]"), made("[Cu+2]"), free=acid) == [(1, 1, -2, 0, 0)]
    # with H2O and its two ions at hand the null space has two dimensions: the least sum takes none that is not needed
    both = [*acid, base[1]]
    assert balances(made("[Cu]"), made("[Cu+2]"), free=both) == [(1, 1, -2, 0, 0, 0)]


def test_all_least_balances_are_those_of_enumeration():
    """Two fuels, two oxidants: many ways to burn."""
    before, after = made("C.CC.O=O.OO"), made("O=C=O.O")
    found = balances(before, after, n=50)
    matrix = np.array([[one.get(name, 0) for one in (*before, *after)] for name in "CHO"]) * [1, 1, 1, 1, -1, -1]
    grid = np.stack(np.meshgrid(*[np.arange(1, 8)] * 4, indexing="ij"), -1).reshape(-1, 4)
    carbon, hydrogen, oxygen = (matrix[:, :4] @ grid.T).tolist()
    whole = [
        (*row, c, h // 2)
        for row, c, h, o in zip(grid.tolist(), carbon, hydrogen, oxygen, strict=True)
        if h % 2 == 0 and 2 * c + h // 2 == o
    ]
    least = min(map(sum, whole))
    assert sorted(found) == sorted(one for one in whole if sum(one) == least)
    ties = balances([{"C": 1}, {"C": 1}], [{"C": 3}], n=10)
    assert ties == [(1, 2, 1), (2, 1, 1)]
    assert balances([{"C": 1}, {"C": 1}], [{"C": 3}]) == ties[:1]


def test_a_side_without_species_is_refused():
    for sides in (([], made("C")), (made("C"), []), ([], [])):
        with pytest.raises(InputError, match="no species"):
            balances(*sides)


@pytest.mark.parametrize(
    ("text", "verdict", "by_product", "name", "nowhere", "hydrogens", "charge"),
    [
        ("CC(=O)O.CCO>>CC(=O)OCC.O", "balanced", None, None, None, 0, 0),
        ("CC(=O)O.CCO>>CC(=O)OCC", "product contained", "H2O", "water", None, -2, 0),
        ("CC(=O)Cl.CCO>CCN(CC)CC>CC(=O)OCC", "product contained", "ClH", "hydrogen chloride", None, -1, 0),
        ("CC(C)(C)OC(=O)NC>>CN", "product contained", "C5H8O2", "Boc, as isobutene and carbon dioxide", None, -8, 0),
        ("CI.CN(C)C>>C[N+](C)(C)C", "product contained", "I-", "iodide", None, 0, 1),
        ("CCBr>>CCCl", "atoms from nowhere", "Br", None, "Cl", 0, 0),
        ("CC=O>>CCO", "product contained", None, None, None, 2, 0),
        ("[13CH3]I.CO>>COC", "atoms from nowhere", "[13C]HI", None, "C", -1, 0),
    ],
)
def test_what_a_reaction_lacks(text, verdict, by_product, name, nowhere, hydrogens, charge):
    found = completeness(text)
    assert (found.verdict, found.by_product, found.name) == (verdict, by_product, name)
    assert (found.nowhere, found.hydrogens, found.charge) == (nowhere, hydrogens, charge)
    assert found.heavy_conserved == (verdict == "balanced" or text == "CC=O>>CCO")
    assert found.without_origin is None


def test_reagents_count_where_reactants_do_not_do():
    assert completeness("CCBr>Cl>CCCl").from_reagents
    assert completeness("CCBr>Cl>CCCl").verdict == "product contained"
    assert not completeness("CCBr.Cl>O>CCCl").from_reagents
    assert completeness("CCBr>O>CCCl").nowhere == "Cl"


def test_equations():
    assert completeness("C.O=O>>O=C=O.O").equation == "C + 2 O=O = O=C=O + 2 O"
    assert completeness("C.O=O>>O=C=O.O").verdict == "atoms from nowhere"  # as written
    assert completeness("CC(=O)O.CCO>>CC(=O)OCC").equation is None
    iron = completeness("[Fe+2]>>[Fe+3]", redox="acid")
    assert (iron.verdict, iron.equation) == ("balanced", "[Fe+2] = [Fe+3] + e-")


def test_atom_maps_tell_which_product_atoms_have_no_origin():
    #     0        1          2    3      4
    text = "[CH3:1][Cl:2].[OH2:3]>>[CH3:1][OH:3]"
    assert completeness(text).without_origin == ()
    assert completeness("CCl.O>>CO", text).without_origin == ()
    assert completeness("[CH3:1]Cl.O>>[CH3:1]O").without_origin == (4,)
    assert completeness("[CH3:1][Cl:2].O>>[CH3:1][OH:2]").without_origin == (4,)  # a chlorine does not become oxygen
    with pytest.raises(InputError, match="no atom-map number"):
        completeness("CCl.O>>CO", "[CH3:1]Cl.O>>C[OH:3]")


def test_formulas_in_hills_order():
    assert formula({"O": 1, "H": 6, "C": 2}) == "C2H6O"
    assert formula({"Cl": 1, "H": 1}) == "ClH"
    assert formula({"N": 1, "O": 3, "charge": -1}) == "NO3-"
    assert formula({"Mn": 1, "charge": 2}) == "Mn(2+)"
    assert formula({"charge": -1}) is None


def test_containment_leaves_hydrogens_out():
    sides = species(parse_reaction("C#C>>CC"))
    before, after = (total([found for _, found in sides[side]]) for side in ("reactant", "product"))
    assert contained(before, after)
    assert not contained(after, before | {"N": 1})
