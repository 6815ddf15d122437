"""The reaction domain as a plug-in: labels with and without maps, grouping, respelling, drawing."""

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import numpy as np
import pytest

from isotrace.base.errors import InputError
from isotrace.domains.domain import Reading, domain_of
from isotrace.domains.molecule.atoms import ATOM_CONCEPTS

TOKEN = re.compile(r"\[[^\]]+\]|Br|Cl|%\d\d|>>|.")
REACTION = domain_of("reaction")
ACYLATION = "CC(=O)Cl.OCc1ccccc1>C1CCOC1>CC(=O)OCc1ccccc1"
MAPPED = (
    "[CH3:1][C:2](=[O:3])Cl.[OH:4][CH2:5][c:6]1[cH:7][cH:8][cH:9][cH:10][cH:11]1.C1CCOC1"
    ">>[CH3:1][C:2](=[O:3])[O:4][CH2:5][c:6]1[cH:7][cH:8][cH:9][cH:10][cH:11]1"
)
WITH_MAPS = REACTION.with_maps({ACYLATION: MAPPED})
REACTIONS = [
    ACYLATION,
    "C%10CC%10.Br>>C1CC1Br",
    "[13CH3:1][OH:2].[2H]Cl>>[13CH3:1]Cl",
    "F/C=C/Cl.[Na+].[I-]>>F/C=C\\I.[Na+].[Cl-]",
    "C1.C1>>CC",
    "CCO>>CCO",
]


def read(text: str) -> Reading:
    spans = [m.span() for m in TOKEN.finditer(text)]
    tokens = ["[CLS]", *(text[a:b] for a, b in spans), "[SEP]"]
    return REACTION.read(text, tokens, [(0, 0), *spans, (0, 0)])


def texts(domain, reading: Reading, concept: str) -> list[str]:
    """What the tokens of each instance spell."""
    place = [c.name for c in domain.concepts].index(concept)
    return [
        "".join(reading.units[token].text for token in tokens)
        for i, tokens in domain.label(reading).instances
        if i == place
    ]


@pytest.mark.parametrize(
    ("concept", "spelled"),
    [
        ("reactant", ["CC(=O)Cl", "OCc1ccccc1"]),
        ("reagent", ["C1CCOC1"]),
        ("product", ["CC(=O)OCc1ccccc1"]),
        ("first reactant", ["CC(=O)Cl"]),
        ("later reactant", ["OCc1ccccc1"]),
        ("arrow", [">", ">"]),
        ("dot", ["."]),
        ("dot between reactants", ["."]),
        ("dot between products", []),
        ("first token of a component", ["C", "O", "C", "C"]),
        ("last token of a component", ["Cl", "1", "1", "1"]),
        ("acyl halide", ["COCl"]),
        ("tetrahydrofuran", ["CCCOC"]),
        ("ester", ["COO"]),
        ("6-membered ring", ["cccccc", "cccccc"]),
        ("first token", ["C"]),
        ("reacting centre", ["CO", "CO"]),
        ("reacting centre before", ["CO"]),
        ("reacting centre after", ["CO"]),
        ("beside the reacting centre", ["C", "O", "Cl", "C", "C", "O", "C"]),
        ("bond broken", ["CCl"]),
        ("bond formed", ["CO"]),
        ("leaving group", ["Cl"]),
        ("hydrogen lost", ["O", "O"]),
        ("hydrogen gained", []),
        ("reactant by atom map", ["CC(=O)Cl", "OCc1ccccc1"]),
        ("reagent by atom map", ["C1CCOC1"]),
        ("atom from the first contributing reactant", ["C", "C", "O", "C", "C", "O"]),
        ("partner beside the reacting centre", ["C", "O", "C", "C", "O", "C"]),
    ],
)
def test_instances_by_hand(concept, spelled):
    assert texts(WITH_MAPS, read(ACYLATION), concept) == spelled


def test_what_needs_maps_is_a_concept_only_with_maps():
    names = {concept.name for concept in REACTION.concepts}
    extra = {concept.name for concept in WITH_MAPS.concepts} - names
    assert {"reacting centre", "leaving group", "atom with a partner"} <= extra
    assert len(WITH_MAPS.concepts) == len(names) + len(extra)
    assert max(i for i, _ in REACTION.label(read(ACYLATION)).instances) < len(names)
    with pytest.raises(InputError, match="no atom-mapped copy"):
        WITH_MAPS.label(read("C>>C"))


def test_every_atom_with_a_partner_is_named_once_per_token():
    reading = read(ACYLATION)
    kept = texts(WITH_MAPS, reading, "atom with a partner")
    assert len(kept) == 22  # 11 mapped atoms before, 11 after


@pytest.mark.parametrize("text", REACTIONS)
def test_labels_are_well_formed(text):
    reading = read(text)
    labels = REACTION.label(reading)
    assert labels.numbers.shape == (len(REACTION.concepts),)
    for _, tokens in labels.instances:
        assert list(tokens) == sorted(set(tokens))
        assert tokens
    assert reading.n_elements == reading.parsed.mol.GetNumAtoms()


@pytest.mark.parametrize("text", REACTIONS)
def test_a_respelled_reaction_has_the_same_atoms_on_the_same_sides(text):
    reading = read(text)
    sides = reading.parsed.side_of()
    of_atoms = {c.name for c in ATOM_CONCEPTS}

    def seen(found: Reading, original) -> list:
        named = [(REACTION.concepts[i].name, tokens) for i, tokens in REACTION.label(found).instances]
        return sorted(
            (name, tuple(sorted(original[e] for token in tokens for e in found.elements[token])))
            for name, tokens in named
            if name in of_atoms | {"reactant", "reagent", "product"}
        )

    for spelling in REACTION.spellings(reading, 4, seed=0):
        other = read(spelling.text)
        assert spelling.text != text
        assert sorted(spelling.original) == list(range(reading.n_elements))
        assert [sides[i] for i in spelling.original] == other.parsed.side_of()
        assert seen(other, spelling.original) == seen(reading, range(reading.n_elements))


def test_spellings_shuffle_the_reactants():
    first = {spelling.original[0] for spelling in REACTION.spellings(read("C.O.N>>CO"), 5, seed=1)}
    assert len(first) > 1


def test_groups_are_those_of_the_largest_product():
    same = ["CCl>>Cc1ccccc1.[Cl-]", "OCc1ccccc1>O>OC(=O)c1ccccc1"]
    other = "Cc1ccccc1>>CC1CCCCC1"
    names = REACTION.groups([*same, other])
    assert names[0] == names[1] != names[2]


def test_match_sees_the_molecules_of_all_sides():
    reading = read("CCl>>CO")
    assert [[reading.units[i].text for i in tokens] for tokens in REACTION.match("smarts", "C*", reading)] == [
        ["C", "Cl"],
        ["C", "O"],
    ]
    assert [[reading.units[i].text for i in tokens] for tokens in REACTION.match("regex", ">>", reading)] == [[">>"]]


@pytest.mark.parametrize("text", REACTIONS)
def test_components_stand_beside_one_another_in_the_picture(text):
    reading = read(text)
    picture = REACTION.picture(reading)
    points = np.asarray([[x, y] for _, x, y, _ in picture["atoms"]])
    boxes = [(points[list(part), 0].min(), points[list(part), 0].max()) for part in reading.parsed.components]
    boxes.sort()
    assert all(left[1] < right[0] for left, right in pairwise(boxes))
    signs = [sign for sign, _, _ in picture["marks"]]
    n = len(reading.parsed.components)
    filled = len(set(reading.parsed.sides))
    assert (signs.count("⟶"), signs.count("+")) == (1, n - filled)
    arrow = next(x for sign, x, _ in picture["marks"] if sign == "⟶")
    sides = reading.parsed.side_of()
    assert all(
        (x < arrow) == (side == "reactant") for (x, _), side in zip(points, sides, strict=True) if side != "reagent"
    )
    lengths = [np.linalg.norm(points[i] - points[j]) for i, j, *_ in picture["bonds"]]
    assert np.all(np.abs(np.asarray(lengths) - 1) < 0.4)


def test_the_drawing_shows_signs_and_colours():
    reading = read(ACYLATION)
    weights = [1.0 if unit.side == "product" else 0.0 for unit in reading.units]
    svg = ET.fromstring(REACTION.draw(reading, weights))
    space = "{http://www.w3.org/2000/svg}"
    heat = {e.get("data-element") for e in svg.iter(f"{space}circle") if e.get("class") == "heat"}
    assert heat == {str(i) for i in reading.parsed.atoms("product")}
    assert sorted(e.text for e in svg.iter(f"{space}text") if e.get("class") == "mark") == ["+", "⟶"]
