"""IMGT regions and positions of known antibodies, refusals, and clones against a plain double loop."""

import random
import re
import sys
from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("immunum", reason="immunum is not installed: pip install 'isotrace[antibody]'")

from isotrace.base.errors import InputError
from isotrace.domains.domain import domain_of
from isotrace.domains.protein import numbering
from isotrace.domains.protein.antibody import ANTIBODY, CONCEPTS
from isotrace.domains.protein.domain import PROTEIN
from isotrace.domains.protein.numbering import REGIONS, number
from isotrace.domains.protein.sequence import STANDARD

# Trastuzumab, its regions as IMGT/mAb-DB gives them.
HEAVY = {
    "FR1": "EVQLVESGGGLVQPGGSLRLSCAAS",
    "CDR1": "GFNIKDTY",
    "FR2": "IHWVRQAPGKGLEWVAR",
    "CDR2": "IYPTNGYT",
    "FR3": "RYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYC",
    "CDR3": "SRWGGDGFYAMDY",
    "FR4": "WGQGTLVTVSS",
}
LIGHT = {
    "FR1": "DIQMTQSPSSLSASVGDRVTITCRAS",
    "CDR1": "QDVNTA",
    "FR2": "VAWYQQKPGKAPKLLIY",
    "CDR2": "SAS",
    "FR3": "FLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYC",
    "CDR3": "QQHYTTPPT",
    "FR4": "FGQGTKVEIK",
}
VH, VL = "".join(HEAVY.values()), "".join(LIGHT.values())
LINKER = "GGGGSGGGGSGGGGS"
NANOBODY = (
    "QVQLQESGGGLVQAGGSLRLSCAASGSIFALNIMGWYRQAPGKQRELVAAIHSGGTTNYA"
    "NSVKGRFTISRDNAANTVYLQMNSLKPEDTAVYYCNVKDFGAIIYDYDYWGQGTQVTVSS"
)
NAMES = [c.name for c in CONCEPTS]


def read(sequence: str):
    offsets = [(0, 0), *((i, i + 1) for i in range(len(sequence))), (0, 0)]
    return ANTIBODY.read(sequence, ["<cls>", *sequence, "<eos>"], offsets)


def labels(sequence: str):
    """Name → text of every instance, and name → number."""
    found = ANTIBODY.label(read(sequence))
    texts: dict[str, list[str]] = {name: [] for name in NAMES}
    for concept, positions in found.instances:
        texts[NAMES[concept]].append("".join(sequence[p - 1] for p in positions if 0 < p <= len(sequence)))
    return texts, dict(zip(NAMES, found.numbers.tolist(), strict=True))


@pytest.mark.parametrize(("regions", "chain"), [(HEAVY, "heavy"), (LIGHT, "kappa")], ids=["VH", "VL"])
def test_regions_of_trastuzumab(regions, chain):
    sequence = "".join(regions.values())
    texts, numbers = labels(sequence)
    for name, text in regions.items():
        assert texts[name] == [text]
    assert texts["CDR"] == [regions[f"CDR{i}"] for i in (1, 2, 3)]
    assert texts["framework"] == [regions[f"FR{i}"] for i in (1, 2, 3, 4)]
    assert texts[f"CDR3 {chain}"] == [regions["CDR3"]]
    assert {c: numbers[f"{c} chain"] for c in ("heavy", "kappa", "lambda")} == {
        c: float(c == chain) for c in ("heavy", "kappa", "lambda")
    }
    assert [numbers[f"CDR{i} length"] for i in (1, 2, 3)] == [len(regions[f"CDR{i}"]) for i in (1, 2, 3)]
    assert texts["1st-CYS 23"] == texts["2nd-CYS 104"] == ["C"]
    assert texts["conserved Trp 41"] == ["W"]
    assert texts["IMGT 118"] == texts["J-Trp or J-Phe 118"] == [regions["FR4"][0]]
    assert texts["outside the variable domain"] == []
    placed = sum(len(texts[f"IMGT {n}"]) for n in range(1, 129)) + len(texts["IMGT insertion"])
    assert placed == len(sequence)


def test_both_domains_of_an_scfv():
    sequence = "HHHHHH" + VL + LINKER + VH
    texts, numbers = labels(sequence)
    assert texts["CDR3"] == [LIGHT["CDR3"], HEAVY["CDR3"]]
    assert texts["CDR3 heavy"] == [HEAVY["CDR3"]]
    assert texts["CDR3 kappa"] == [LIGHT["CDR3"]]
    assert "".join(texts["outside the variable domain"]) == "HHHHHH" + LINKER
    assert numbers["two or more variable domains"] == numbers["heavy chain"] == numbers["kappa chain"] == 1
    assert numbers["CDR3 length"] == len(HEAVY["CDR3"])  # of the heavy domain, though it comes second
    bands = ANTIBODY.bands(read(sequence))
    assert [b.name for b in bands] == [*REGIONS] * 2
    assert [sequence[b.start : b.end] for b in bands] == [*LIGHT.values(), *HEAVY.values()]


def test_a_missing_landmark_is_no_landmark():
    texts, _ = labels(VH.replace("VYYCSR", "VYYSSR"))
    assert texts["2nd-CYS 104"] == []
    assert texts["IMGT 104"] == ["S"]


def test_nanobodies_carry_their_hallmark():
    assert labels(NANOBODY)[1]["VHH hallmark residues"] == 1
    assert labels(VH)[1]["VHH hallmark residues"] == labels(VL)[1]["VHH hallmark residues"] == 0


def test_the_protein_concepts_come_first():
    reading = read(VH)
    offsets = [(unit.start, unit.end) for unit in reading.units]
    base = PROTEIN.label(PROTEIN.read(VH, [unit.text for unit in reading.units], offsets))
    own = ANTIBODY.label(reading)
    assert CONCEPTS[: len(PROTEIN.concepts)] == PROTEIN.concepts
    assert own.instances[: len(base.instances)] == base.instances
    np.testing.assert_array_equal(own.numbers[: len(base.numbers)], base.numbers)


def test_spaces_and_merged_tokens():
    spaced = " ".join(VH)
    reading = ANTIBODY.read(spaced, list(VH), [(2 * i, 2 * i + 1) for i in range(len(VH))])
    assert reading.parsed == number(VH)
    pairs = [(i, min(i + 2, len(VH))) for i in range(0, len(VH), 2)]
    merged = ANTIBODY.read(VH, [VH[a:b] for a, b in pairs], pairs)
    (cdr3,) = (p for c, p in ANTIBODY.label(merged).instances if NAMES[c] == "CDR3")
    begin = VH.index(HEAVY["CDR3"])
    assert cdr3 == tuple(range(begin // 2, (begin + len(HEAVY["CDR3"]) - 1) // 2 + 1))


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("MTYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE", "no antibody variable domain found: alignment"),
        ("EVQLV", "no antibody variable domain found: sequence length 5"),
        (VH[:50] + "*", "'*' at position 51"),
    ],
)
def test_what_is_no_antibody(sequence, message):
    for use in (ANTIBODY.check, lambda s: ANTIBODY.groups([VH, s])):
        with pytest.raises(InputError, match=re.escape(message)):
            use(sequence)


def test_a_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "immunum", None)
    numbering._annotator.cache_clear()
    try:
        with pytest.raises(InputError, match=re.escape("pip install 'isotrace[antibody]'")):
            ANTIBODY.check(VH)
    finally:
        numbering._annotator.cache_clear()


def changed(sequence: str, place: Sequence[int], n: int, rng: random.Random) -> str:
    letters = list(sequence)
    for i in rng.sample(list(place), n):
        letters[i] = rng.choice([a for a in STANDARD if a not in (letters[i], "C", "W", "P")])
    return "".join(letters)


def test_clones_equal_the_definition():
    rng = random.Random(0)
    antibodies = []
    # Two changes in a CDR3 of ten leave it at the threshold exactly.
    for sequence in (VH, NANOBODY, VL, VH.replace(HEAVY["CDR3"], "SRWGGDGMDY")):
        cdr3 = number(sequence).main.region("CDR3")
        for n in (0, 1, 2, 3, 4, 6):
            antibodies += [changed(sequence, cdr3, min(n, len(cdr3)), rng) for _ in range(3)]
            antibodies.append(changed(sequence, [*range(4, 21), *range(56, 82)], 4 * n, rng))
    antibodies.append(VH.replace(HEAVY["CDR3"], HEAVY["CDR3"][:-1]))

    mains = {sequence: number(sequence).main for sequence in antibodies}

    def linked(a: str, b: str) -> bool:
        one, two = mains[a], mains[b]
        loops = [[s[i] for i in d.region("CDR3")] for s, d in ((a, one), (b, two))]
        if one.chain != two.chain or len(loops[0]) != len(loops[1]):
            return False
        same = sum(x == y for x, y in zip(*loops, strict=True))
        letters = [[s[i] if (i := d.at(n)) is not None else "" for n in range(1, 105)] for s, d in ((a, one), (b, two))]
        agree = sum(x == y != "" for x, y in zip(*letters, strict=True))
        present = sum(x != "" or y != "" for x, y in zip(*letters, strict=True))
        return same >= 0.8 * len(loops[0]) and agree >= 0.8 * present

    label = list(range(len(antibodies)))
    for i, a in enumerate(antibodies):
        for j, b in enumerate(antibodies[:i]):
            if linked(a, b):
                label = [label[j] if x == label[i] else x for x in label]
    groups = ANTIBODY.groups(antibodies)
    assert len(set(zip(groups, label, strict=True))) == len(set(groups)) == len(set(label))
    assert 3 < len(set(groups)) < len(antibodies)
    # An scFv goes with its heavy chain.
    assert len(set(ANTIBODY.groups([VH, VL + LINKER + VH]))) == 1


def test_drawing_shows_the_bands():
    svg = ANTIBODY.draw(read(VH), [0.0] * (len(VH) + 2))
    for name in REGIONS:
        assert f">{name}</text>" in svg
    assert domain_of("antibody") is ANTIBODY
    picture = ANTIBODY.picture(read(VH))
    assert picture["bands"][1] == {"name": "CDR1", "start": 25, "end": 33, "group": "CDR"}
