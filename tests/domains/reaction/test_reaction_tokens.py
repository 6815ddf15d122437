"""Tokens of reaction SMILES: sides, components, atoms numbered through the whole text; what is refused."""

import re

import pytest
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.domains.reaction.tokens import parse_reaction, reaction_units

# Two-character tokens first; `>>` is one token.
TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|%\d\d|%\(\d+\)|>>|->|<-|.")
HARD = [
    "CC(=O)Cl.OCc1ccccc1>>CC(=O)OCc1ccccc1",
    "CC(=O)Cl.OCc1ccccc1>C1CCOC1.[Na+].[OH-]>CC(=O)OCc1ccccc1.[Na+].[Cl-]",
    "C%10CC%10.Br>>C1CC1Br",
    "[13CH3:1][OH:2].[2H]Cl>>[13CH3:1]Cl",
    "F/C=C/Cl>>F/C=C\\Cl",
    "N[C@@H](C)C(=O)O>O>N[C@H](C)C(=O)O",
    "[NH4+].[Cl-]>>N.Cl",
    "N->[Cu]>>N.[Cu]",
    "C1.C1>>CC",
    "[H][H].C=C>[Pd]>CC",
    "c1cc[nH]c1.BrBr>>Brc1ccc[nH]1.Br",
    "C(C(C(C)C)(C)C)C>>C(C)C",
]


def units_of(text: str):
    spans = [m.span() for m in TOKEN.finditer(text)]
    reaction = parse_reaction(text)
    return reaction, reaction_units(text, reaction, [text[a:b] for a, b in spans], spans)


@pytest.mark.parametrize("text", HARD)
def test_sides_and_atoms_are_as_if_each_side_were_read_alone(text):
    reaction, units = units_of(text)
    sides = text.replace("->", "-\0").split(">")
    first = 0
    for side, part in zip(("reactant", "reagent", "product"), sides, strict=True):
        params = Chem.SmilesParserParams()
        params.removeHs = False
        mol = Chem.MolFromSmiles(part.replace("\0", ">"), params)
        here = [unit for unit in units if unit.side == side]
        assert "".join(unit.text for unit in here) == part.replace("\0", ">")
        written = {a for unit in here if unit.kind == "atom" for a in unit.atoms}
        assert written == set(range(first, first + mol.GetNumAtoms())) == set(reaction.atoms(side))
        for i, atom in enumerate(mol.GetAtoms()):
            twin = reaction.mol.GetAtomWithIdx(first + i)
            assert (atom.GetSymbol(), atom.GetTotalNumHs(), atom.GetFormalCharge(), atom.GetIsotope()) == (
                twin.GetSymbol(),
                twin.GetTotalNumHs(),
                twin.GetFormalCharge(),
                twin.GetIsotope(),
            )
        assert sum(s == side for s in reaction.sides) == len(Chem.GetMolFrags(mol))
        first += mol.GetNumAtoms()
    assert reaction.mol.GetNumAtoms() == first


@pytest.mark.parametrize("text", HARD)
def test_every_token_of_a_component_speaks_of_its_atoms_only(text):
    reaction, units = units_of(text)
    for unit in units:
        if unit.component is None:
            assert unit.kind in ("dot", "arrow")
        else:
            assert unit.side == reaction.sides[unit.component]
            assert set(unit.atoms) <= set(reaction.components[unit.component])
        if unit.partner is not None:
            assert units[unit.partner].atoms == unit.atoms


def test_by_hand():
    _, units = units_of("CCl.[Na+]>O>C1.C1")
    assert [(u.text, u.kind, u.side, u.component, u.atoms) for u in units] == [
        ("C", "atom", "reactant", 0, (0,)),
        ("Cl", "atom", "reactant", 0, (1,)),
        (".", "dot", "reactant", None, ()),
        ("[Na+]", "atom", "reactant", 1, (2,)),
        (">", "arrow", None, None, ()),
        ("O", "atom", "reagent", 2, (3,)),
        (">", "arrow", None, None, ()),
        ("C", "atom", "product", 3, (4,)),
        ("1", "ring", "product", 3, (4, 5)),
        (".", "dot", "product", None, ()),
        ("C", "atom", "product", 3, (5,)),
        ("1", "ring", "product", 3, (4, 5)),
    ]


def test_special_tokens_and_offsets():
    reaction = parse_reaction("CO>>C")
    units = reaction_units(
        "CO>>C", reaction, ["[CLS]", "CO", ">", ">", "C", "[SEP]"], [(0, 0), (0, 2), (2, 3), (3, 4), (4, 5), (0, 0)]
    )
    assert [(u.kind, u.side, u.atoms) for u in units] == [
        ("special", None, ()),
        ("atom", "reactant", (0, 1)),
        ("arrow", None, ()),
        ("arrow", None, ()),
        ("atom", "product", (2,)),
        ("special", None, ()),
    ]
    with pytest.raises(InputError, match="truncation"):
        reaction_units("CO>>C", reaction, ["CO"], [(0, 2)])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("CCO", "0 arrows"),
        ("CC>CC", "1 arrows"),
        ("C>C>C>C", "3 arrows"),
        ("C>>>C", "3 arrows"),
        (">>C", "no reactant"),
        ("C>>", "no product"),
        (">O>", "no reactant"),
        ("C1>>C1", "the reactants cannot be read: ring closure 1"),
        ("C>x>C", "the reagents cannot be read: character 1"),
        ("CC>>C(C)(C)(C)(C)C", "the products cannot be read: .* valence"),
        ("C..C>>C", "the reactants cannot be read"),
    ],
)
def test_what_is_no_reaction_is_refused_with_the_side(text, says):
    with pytest.raises(InputError, match=says):
        parse_reaction(text)
