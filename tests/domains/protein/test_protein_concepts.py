"""Concepts against counts made by hand, naive loops, and RDKit."""

import math
import re

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import Descriptors

from isotrace.base.errors import InputError
from isotrace.domains.protein.domain import PROTEIN
from isotrace.domains.protein.vocabulary.concepts import CONCEPTS
from isotrace.domains.protein.vocabulary.motifs import known_motifs, matches
from isotrace.domains.protein.vocabulary.properties import (
    CONSENSUS,
    HYDROPATHY,
    entropy,
    helix_moments,
    isoelectric_point,
    net_charge,
    stretches,
    values,
    window_entropies,
    window_means,
)

UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
NAMES = [c.name for c in CONCEPTS]


def labels(sequence: str):
    """Name → residues of each instance, and name → number; the sequence stands between two special tokens."""
    tokens = ["<cls>", *sequence, "<eos>"]
    offsets = [(0, 0), *((i, i + 1) for i in range(len(sequence))), (0, 0)]
    found = PROTEIN.label(PROTEIN.read(sequence, tokens, offsets))
    instances: dict[str, list[tuple[int, ...]]] = {name: [] for name in NAMES}
    for concept, positions in found.instances:
        instances[NAMES[concept]].append(tuple(p - 1 for p in positions))
    return instances, dict(zip(NAMES, found.numbers.tolist(), strict=True))


def test_names_are_unique_and_numbers_match_kinds():
    assert len(set(NAMES)) == len(NAMES)
    instances, numbers = labels(UBIQUITIN)
    for concept in CONCEPTS:
        assert math.isnan(numbers[concept.name]) == (concept.kind == "token")
        assert not (instances[concept.name] and concept.kind != "token")


def test_residues_classes_and_ends_by_hand():
    found, _ = labels("MKRSTDEFWCPGXU")
    assert found["residue M"] == [(0,)]
    assert found["residue A"] == []
    assert found["positive residue"] == [(1,), (2,)]
    assert found["negative residue"] == [(5,), (6,)]
    assert found["hydroxyl residue"] == [(3,), (4,)]
    assert found["aromatic residue"] == [(7,), (8,)]
    assert found["sulfur residue"] == [(0,), (9,)]
    assert found["proline or glycine"] == [(10,), (11,)]
    assert found["uncertain residue"] == [(12,)]
    assert found["rare residue"] == [(13,)]
    assert found["first residue"] == [(0,)]
    assert found["last residue"] == [(13,)]
    assert found["first 10 residues"] == [(i,) for i in range(10)]
    assert found["last 10 residues"] == [(i,) for i in range(4, 14)]
    assert found["special token at the start"] == [(-1,)]
    assert found["special token at the end"] == [(14,)]


@pytest.mark.parametrize(
    ("motif", "sequence", "places"),
    [
        ("N-glycosylation site", "ANGTANPTANGSPNAS", [(1, 5)]),  # NPT and NGSP are refused, NAS has no residue after
        ("Walker A (P-loop)", "MGPPGVGKSTLA", [(1, 9)]),
        ("Walker A (P-loop)", "MGPPGVGKDTLA", []),
        ("integrin-binding RGD", "RGDRGD", [(0, 3), (3, 6)]),
        ("ER retention KDEL", "KDELAKDEL", [(5, 9)]),
        ("zinc finger C2H2", "YKCPECGKSFSQKSDLVKHQRTHTG", [(2, 23)]),
        ("EF-hand loop", "AFSLFDKDGDGTITTKELGT", [(5, 17)]),
        ("leucine zipper", "LEDKVEELLSKNYHLENEVARLKKL", [(0, 22)]),
        ("SH3-binding PxxP", "PPPPP", [(0, 4), (1, 5)]),
        ("PDZ ligand C-terminus", "SAVESDV", [(4, 7)]),
        ("Cys pair CxxC", "CAACAAC", [(0, 4), (3, 7)]),
    ],
)
def test_motifs_where_they_are_known(motif, sequence, places):
    assert labels(sequence)[0][motif] == [tuple(range(a, b)) for a, b in places]


def test_prosite_syntax():
    assert [*map(list, matches("prosite", "<M-x(2,3)-[KR]>.", "MAAK"))] == [[0, 1, 2, 3]]
    assert matches("prosite", "<A", "BA") == []
    assert matches("prosite", "A-[G>]", "AGA") == [range(2), range(2, 3)]
    assert matches("prosite", "{P}(2)", "APAA") == [range(2, 4)]
    assert matches("regex", "A+", "AABA") == [range(2), range(3, 4)]
    assert matches("regex", "P*", "AA") == []
    for kind, pattern, message in [
        ("prosite", "N-P!", "'P!' is not an element"),
        ("prosite", "", "'' is not an element"),
        ("prosite", "x(3,2)", "repeats from 3 to 2"),
        ("regex", "(A", "no regular expression"),
        ("smarts", "C", "no 'smarts' patterns"),
    ]:
        with pytest.raises(InputError, match=re.escape(message)):
            matches(kind, pattern, "MAAK")


def test_every_known_motif_compiles_and_names_its_source():
    motifs = known_motifs()
    assert 40 <= len(motifs) == sum(c.group == "motif" for c in CONCEPTS)
    for pattern in motifs.values():
        matches("prosite", pattern, UBIQUITIN)


def test_stretches_by_hand():
    found, numbers = labels("DDEEDGSGSAKKRKAAAA" + "LLVVIILLAVLLIVVLAIL" + "PEDNQSTGHKPEDNQ")
    assert found["homopolymer run"] == [tuple(range(14, 18))]
    assert found["negative cluster"] == [tuple(range(6))]
    assert found["positive cluster"] == [tuple(range(9, 15))]
    (stretch,) = found["hydrophobic stretch"]
    assert set(range(18, 37)) <= set(stretch)
    assert numbers["membrane-spanning stretch"] == 1
    assert labels(UBIQUITIN)[1]["membrane-spanning stretch"] == 0
    assert labels("MTYK")[0]["low-complexity stretch"] == []
    assert labels("A" * 15)[0]["low-complexity stretch"] == [tuple(range(15))]
    # LL-37 and the LK peptides of DeGrado and Lear (1985), made to be a helix and a strand.
    assert labels("LLGDFFRKSKEKIGKEFKRIVQRIKDFLRNLVPRTES")[0]["amphipathic helix-like stretch"]
    assert labels("LKKLLKLLKKLLKL")[0]["amphipathic helix-like stretch"]
    assert not labels("LKLKLKLKLKLKLKL")[0]["amphipathic helix-like stretch"]


def test_windows_equal_naive_loops():
    sequence = UBIQUITIN[:30] + "X" + UBIQUITIN[30:50]
    for width in (5, 11):
        starts = range(len(sequence) - width + 1)
        parts = [sequence[i : i + width] for i in starts]
        mean = [np.mean([HYDROPATHY.get(a, np.nan) for a in p]) for p in parts]
        np.testing.assert_allclose(window_means(sequence, HYDROPATHY, width), mean, atol=1e-12)
        np.testing.assert_allclose(
            window_entropies(sequence, width), [entropy([p.count(a) for a in set(p)]) for p in parts], atol=1e-12
        )
        angle = [math.radians(100 * k) for k in range(width)]
        moment = [
            math.hypot(
                sum(CONSENSUS.get(a, math.nan) * math.cos(t) for a, t in zip(p, angle, strict=True)),
                sum(CONSENSUS.get(a, math.nan) * math.sin(t) for a, t in zip(p, angle, strict=True)),
            )
            / width
            for p in parts
        ]
        np.testing.assert_allclose(helix_moments(sequence, width), moment, atol=1e-12)
    assert stretches(np.array([1, 1, 0, 0, 0, 0, 1], dtype=bool), 3) == [range(4), range(6, 9)]
    assert stretches(np.zeros(0, dtype=bool), 3) == []


def test_numbers_against_rdkit_and_published_values():
    found = values(UBIQUITIN)
    assert found["molecular weight"] == pytest.approx(Descriptors.MolWt(Chem.MolFromFASTA(UBIQUITIN)), rel=1e-5)
    assert found["length"] == 76
    assert found["aliphatic index"] == pytest.approx(100.0, abs=0.01)  # ProtParam's for P0CG48's ubiquitin
    assert found["GRAVY"] == pytest.approx(-0.489, abs=5e-4)
    assert found["extinction coefficient"] == 1490
    assert found["aromaticity"] == pytest.approx(3 / 76)
    assert values("ACDEFGHIKLMNPQRSTVWY")["composition entropy"] == pytest.approx(math.log2(20))
    assert abs(net_charge(UBIQUITIN, isoelectric_point(UBIQUITIN))) < 1e-6
    assert net_charge("K", 3.0) > 1 > 0 > net_charge("D", 6.0)


def test_unknown_residues_make_unknown_numbers():
    for letter in "XBZ":
        found = values("MTYK" + letter)
        assert {n for n, v in found.items() if math.isnan(v)} == {
            "molecular weight",
            "isoelectric point",
            "net charge at pH 7",
            "GRAVY",
        }
    assert not math.isnan(values("MTUO")["molecular weight"])
    assert math.isnan(values("MTUO")["GRAVY"])
