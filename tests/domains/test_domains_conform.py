"""Every domain keeps its word, and so does one that somebody else registers."""

import re

import pytest

from isotrace.base.errors import InputError
from isotrace.domains.conformance import check
from isotrace.domains.domain import DOMAINS, domain_of

VH = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDY"
    "WGQGTLVTVSS"
)
SMILES = r"\[[^\]]+\]|Br|Cl|>>|."
CASES = {
    "molecule": (SMILES, ["CC(=O)Oc1ccccc1C(=O)O", "[Na+].[O-]c1cc[nH]c1", "C"]),
    "reaction": (SMILES, ["CC(=O)O.OCC>>CC(=O)OCC", "CCBr.[Na+].[OH-]>O>CCO"]),
    "protein": (".", ["MKVXUC", "M" * 25]),
    "antibody": (".", [VH, VH + "GGGGSGGGGSGGGGS" + VH]),
    "gene": (r"\S+", ["LYZ S100A9 CD14 MT-CO1 RPS3 HLA-A", "CD3D"]),
}


pytestmark = pytest.mark.usefixtures("genes")


def tokenised(pattern: str, text: str):
    found = [("<cls>", (0, 0)), *((m[0], m.span()) for m in re.finditer(pattern, text)), ("<eos>", (0, 0))]
    return list(zip(*found, strict=True))


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, (_, texts) in CASES.items() for text in texts])
def test_a_domain_keeps_its_word(name, text):
    if name == "antibody":
        pytest.importorskip("immunum", reason="antibodies are numbered by immunum")
    tokens, offsets = tokenised(CASES[name][0], text)
    assert check(domain_of(name), text, tokens, offsets).text == text


def test_every_domain_that_ships_is_here():
    assert set(DOMAINS) == set(CASES)


def test_a_domain_that_breaks_its_word_is_named(genes):
    class Broken(genes):
        def parts(self, reading):
            return super().parts(reading)[:-1]

    tokens, offsets = tokenised(*[CASES["gene"][i] if i == 0 else CASES["gene"][1][0] for i in (0, 1)])
    with pytest.raises(InputError, match="parts does not fit"):
        check(Broken(), CASES["gene"][1][0], tokens, offsets)


@pytest.mark.parametrize(
    ("text", "reason"), [("", "empty"), ("CD3D <b>", "no gene symbol"), ("CD3D LYZ CD3D", "twice"), ("A " * 300, "cut")]
)
def test_cells_that_are_none(text, reason):
    with pytest.raises(InputError, match=reason):
        domain_of("gene").begun(text, None)


def test_two_cells_are_aligned_by_their_genes():
    readings = []
    for text in ("LYZ CD14 S100A9 ACTB", "CD14 LYZ ACTB CD3D"):
        readings.append(domain_of("gene").read(text, *tokenised(r"\S+", text)))
    found = domain_of("gene").align(*readings)
    assert found.partner == (0, 2, 1, None, 3, 5)
    assert (found.changed, found.n_shared) == ((frozenset({2}), frozenset({3})), 3)
