"""Molecule drawings: every atom can be found where RDKit put it, and colours mean what the scale says."""

import math
import re
import xml.etree.ElementTree as ET
from statistics import median

import pytest
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.domains.molecule.drawing import BLUE, ORANGE, colour, draw_molecule, draw_small
from isotrace.domains.molecule.smiles import lex

SVG = "{http://www.w3.org/2000/svg}"
HARD = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "[H]O[H]",
    "[2H]C([2H])[Hg]",
    "[Na+].[Cl-]",
    "C/C=C/[13C](=O)N1CCN(Cc2ccc(F)cc2)CC1",
    "N[C@@H](C)C(=O)[O-]",
    "C%10CCCCC%10",
    "C",
]
DRUGS = [  # aspirin, omeprazole, salbutamol, atorvastatin
    "CC(=O)Oc1ccccc1C(=O)O",
    "COc1ccc2nc(S(=O)Cc3ncc(C)c(OC)c3C)[nH]c2c1",
    "CC(C)(C)NC[C@H](O)c1ccc(O)c(CO)c1",
    "CC(C)c1c(C(=O)Nc2ccccc2)c(-c2ccccc2)c(-c2ccc(F)cc2)n1CC[C@@H](O)C[C@@H](O)CC(=O)O",
]


def parse(smiles: str) -> Chem.Mol:
    params = Chem.SmilesParserParams()
    params.removeHs = False
    return Chem.MolFromSmiles(smiles, params)


def circles(svg: str, kind: str) -> dict[int, ET.Element]:
    found = [e for e in ET.fromstring(svg).iter(f"{SVG}circle") if e.get("class") == kind]
    assert len({e.get("data-element") for e in found}) == len(found)
    return {int(e.attrib["data-element"]): e for e in found}


def centre(circle: ET.Element) -> tuple[float, float]:
    return float(circle.attrib["cx"]), float(circle.attrib["cy"])


@pytest.mark.parametrize("smiles", HARD)
def test_every_written_atom_can_be_hit_inside_the_picture(smiles):
    svg = draw_molecule(parse(smiles), {0: 1.0}, size=(400, 300), diverging=False)
    hits = circles(svg, "hit")
    assert set(hits) == {a for x in lex(smiles) if x.kind == "atom" for a in x.atoms}
    for x, y in map(centre, hits.values()):
        assert 0 <= x <= 400
        assert 0 <= y <= 300


def test_hits_lie_where_rdkit_drew_the_atoms():
    mol = parse("CC(=O)Oc1ccccc1C(=O)O")
    svg = draw_molecule(mol, {}, size=(400, 300), diverging=False)
    hits = {i: centre(c) for i, c in circles(svg, "hit").items()}
    single = [b for b in mol.GetBonds() if {b.GetBeginAtom().GetSymbol(), b.GetEndAtom().GetSymbol()} == {"C"}]
    checked = 0
    for bond in single:
        tagged = [
            e for e in ET.fromstring(svg).iter(f"{SVG}path") if f"bond-{bond.GetIdx()}" in e.get("class", "").split()
        ]
        first = re.findall(r"-?\d+(?:\.\d+)?", tagged[0].attrib["d"])
        start, end = (float(first[0]), float(first[1])), (float(first[-2]), float(first[-1]))
        a, b = hits[bond.GetBeginAtomIdx()], hits[bond.GetEndAtomIdx()]
        # A double bond outside a ring is drawn beside the axis, and every other bond on it.
        assert math.dist(start, a) < 6
        assert math.dist(end, b) < 6
        checked += 1
    assert checked == 8


def test_heat_colours_follow_the_weights():
    weights = {0: 2.0, 1: -1.0, 2: 0.0, 3: 0.5}
    svg = draw_molecule(parse("CCCC"), weights, size=(300, 200), diverging=True, bond_weights={1: -2.0})
    heat = circles(svg, "heat")
    assert {i: c.get("fill") for i, c in heat.items()} == {
        i: colour(w, 2.0, diverging=True) for i, w in weights.items() if w
    }
    band = next(e for e in ET.fromstring(svg).iter(f"{SVG}path") if e.get("class") == "heat")
    assert (band.get("data-bond"), band.get("stroke")) == ("1", colour(-2.0, 2.0, diverging=True))
    assert svg.index('class="heat"') < svg.index("class='bond-0") < svg.index('class="hit"')


def test_drawing_has_no_id_prolog_or_background():
    for svg in (draw_molecule(parse("CCO"), {}, size=(300, 200), diverging=False), draw_small(parse("CCO"), {})):
        root = ET.fromstring(svg)
        assert svg.startswith("<svg")
        assert "<?xml" not in svg
        assert not [e for e in root.iter() if e.get("id")]
        assert not list(root.iter(f"{SVG}rect"))


def test_small_drawings_are_small():
    sizes = []
    for smiles in DRUGS:
        n = parse(smiles).GetNumAtoms()
        svg = draw_small(parse(smiles), dict.fromkeys(range(n), 1.0))
        assert len(circles(svg, "heat")) == n
        sizes.append(len(svg.encode()))
    # A page carries hundreds of them: 6 kB for the usual drug, even with every atom coloured.
    assert median(sizes) < 6000


def test_drawings_can_share_a_scale():
    large = draw_molecule(parse("CCO"), {0: 1.0}, size=(300, 200), diverging=True, scale=4.0)
    assert circles(large, "heat")[0].get("fill") == colour(1.0, 4.0, diverging=True)
    alone, shared = draw_small(parse("CCO"), {0: 1.0}), draw_small(parse("CCO"), {0: 1.0}, scale=4.0)
    assert circles(alone, "heat")[0].get("fill") == colour(1.0, 1.0, diverging=False)
    assert circles(shared, "heat")[0].get("fill") == colour(1.0, 4.0, diverging=False)


def test_colour_scale():
    assert colour(0.0, 0.0, diverging=False) == colour(0.0, 3.0, diverging=True) == "#ffffff"
    assert colour(3.0, 3.0, diverging=True) == "#{:02x}{:02x}{:02x}".format(*ORANGE)
    assert colour(-3.0, 3.0, diverging=True) == "#{:02x}{:02x}{:02x}".format(*BLUE)
    half = [int(colour(1.5, 3.0, diverging=False)[i : i + 2], 16) for i in (1, 3, 5)]
    assert all(abs(value - (255 + end) / 2) <= 1 for value, end in zip(half, ORANGE, strict=True))


@pytest.mark.parametrize(
    ("weight", "scale", "message"),
    [(-1.0, 2.0, "diverging"), (3.0, 2.0, "larger scale"), (math.nan, 1.0, "finite"), (1.0, math.inf, "finite")],
)
def test_values_without_a_colour(weight, scale, message):
    with pytest.raises(InputError, match=message):
        colour(weight, scale, diverging=False)


def test_what_cannot_be_drawn():
    with pytest.raises(InputError, match="atom 3 does not exist"):
        draw_molecule(parse("CCO"), {3: 1.0}, size=(300, 200), diverging=False)
    with pytest.raises(InputError, match="bond 2 does not exist"):
        draw_molecule(parse("CCO"), {}, size=(300, 200), bond_weights={2: 1.0}, diverging=False)
