"""Tokens ↔ residues: merged tokens, spaces, masks, and what is no sequence."""

import re

import pytest

from isotrace.base.errors import InputError
from isotrace.domains.domain import domain_of
from isotrace.domains.protein.domain import PROTEIN

GB1 = "MTYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"


def single(text: str):
    """One token per residue between two specials, as ESM-2 gives them."""
    places = [i for i, letter in enumerate(text) if letter != " "]
    return ["<cls>", *(text[i] for i in places), "<eos>"], [(0, 0), *((i, i + 1) for i in places), (0, 0)]


def test_one_residue_per_token():
    reading = PROTEIN.read(GB1, *single(GB1))
    assert reading.elements == ((), *((i,) for i in range(56)), ())
    assert [u.kind for u in reading.units] == ["special", *["residue"] * 56, "special"]
    assert "".join(GB1[u.start : u.end] for u in reading.units) == GB1
    assert reading.parsed == GB1
    assert domain_of("protein") is PROTEIN


def test_merged_tokens_carry_all_their_residues():
    pieces = ["MTY", "K", "LIL", "NGKT"]
    offsets, at = [(0, 0)], 0
    for piece in pieces:
        offsets.append((at, at + len(piece)))
        at += len(piece)
    reading = PROTEIN.read("MTYKLILNGKT", ["[CLS]", *pieces], offsets)
    assert reading.elements == ((), (0, 1, 2), (3,), (4, 5, 6), (7, 8, 9, 10))
    # N-G-K-T is a glycosylation site: the motif covers one token here, and K is carried by two.
    names = [c.name for c in PROTEIN.concepts]
    carried = {(names[c], p) for c, p in PROTEIN.label(reading).instances}
    assert {p for n, p in carried if n == "residue K"} == {(2,), (4,)}
    assert ("first 10 residues", (4,)) in carried
    assert PROTEIN.match("prosite", "L-x-L-N", reading) == [(3, 4)]


@pytest.mark.parametrize("leading", [False, True], ids=["letters only", "with the space before"])
def test_spaces_between_residues_are_layout(leading):
    text = "M T Y K"
    offsets = [(max(i - leading, 0), i + 1) for i in range(0, 7, 2)]
    reading = PROTEIN.read(text, list("MTYK"), offsets)
    assert reading.elements == ((0,), (1,), (2,), (3,))
    assert reading.parsed == "MTYK"
    assert PROTEIN.groups(["M T Y K", "MTYK"])[0] == PROTEIN.groups(["MTYK"])[0]


def test_a_token_of_spaces_and_a_mask():
    reading = PROTEIN.read("MT YK", ["M", "<mask>", " ", "Y", "K"], [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5)])
    assert [u.kind for u in reading.units] == ["residue", "residue", "special", "residue", "residue"]
    assert reading.elements[1] == (1,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the sequence is empty"),
        ("   ", "the sequence is empty"),
        ("MTY*", "'*' at position 4 is no residue: it marks a stop codon"),
        ("MT-Y", "'-' at position 3 is no residue: it marks a gap"),
        ("MT.Y", "'.' at position 3 is no residue: it marks a gap"),
        ("MtY", "'t' at position 2 is no residue: write residues in capitals"),
        ("MJ", "'J' at position 2 is no residue: write L or I"),
        ("M1", "'1' at position 2 is no residue: use ACDEFGHIKLMNPQRSTVWY"),
        ("M T\nY", "'\\n' at position 3 is no residue"),
        ("MÅ", "'Å' at position 2 is no residue"),
    ],
)
def test_what_is_no_sequence(text, message):
    with pytest.raises(InputError, match=re.escape(message)):
        PROTEIN.check(text)


def test_rare_and_uncertain_letters_are_residues():
    PROTEIN.check("ACDEFGHIKLMNPQRSTVWYUOBZX")


@pytest.mark.parametrize(
    ("tokens", "offsets", "message"),
    [
        (["M", "T"], [(0, 1)], "2 tokens but 1 offsets"),
        (["M"], [(0, 1)], "the tokens stop at residue 1 of 3"),
        (["M", "Y"], [(0, 1), (2, 3)], "covers characters 2:3 but residue 2 comes next"),
        (["MT", "TY"], [(0, 2), (1, 3)], "covers characters 1:3 but residue 3 comes next"),
        (["MTYK"], [(0, 4)], "covers characters 0:4 of 3"),
    ],
)
def test_offsets_that_do_not_fit(tokens, offsets, message):
    with pytest.raises(InputError, match=re.escape(message)):
        PROTEIN.read("MTY", tokens, offsets)


def test_bonds_join_neighbours():
    assert PROTEIN.bonds(PROTEIN.read("MTYK", *single("MTYK"))).tolist() == [[0, 1], [1, 2], [2, 3]]
    assert PROTEIN.bonds(PROTEIN.read("M", *single("M"))).shape == (0, 2)
    assert PROTEIN.spellings(PROTEIN.read("MTYK", *single("MTYK")), 5, 0) == []


def test_drawing_colours_residues_by_their_token():
    reading = PROTEIN.read("MTYKL", ["<cls>", "MT", "Y", "KL"], [(0, 0), (0, 2), (2, 3), (3, 5)])
    svg = PROTEIN.draw(reading, [9.0, 1.0, 0.0, 0.5], scale=1.0)
    assert re.findall(r'data-element="(\d)"[^>]*fill="(#\w+)"', svg) == [
        ("0", "#e8832a"),
        ("1", "#e8832a"),
        ("3", "#f4c194"),
        ("4", "#f4c194"),
    ]
    for wrong, message in (
        ([0.0], "1 weights for 4 tokens"),
        ([0, 0, -1, 0], "negative"),
        ([0, 0, float("nan"), 0], "nan"),
    ):
        with pytest.raises(InputError, match=message):
            PROTEIN.draw(reading, wrong)
    assert PROTEIN.picture(reading) == {
        "kind": "track",
        "text": "MTYKL",
        "tokens": [["<cls>", []], ["MT", [0, 1]], ["Y", [2]], ["KL", [3, 4]]],
        "bands": [],
    }
