"""Mutations as text, and how they are counted."""

import polars as pl
import pytest

from isotrace.base.errors import InputError
from isotrace.datasets.inputs import rejects_frame
from isotrace.datasets.mutations import check_numbering, mutations, read_scan

PROTEIN = "MTYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNGVDGEWTYDDATKTFTVTE"


def scan(shift=0, sequence=PROTEIN, n=None):
    return [(sequence, f"{letter}{i + 1 + shift}{'A' if letter != 'A' else 'G'}") for i, letter in enumerate(PROTEIN)][
        :n
    ]


@pytest.mark.parametrize("cell", ["E1A:K2G", "E1A,K2G", "E1A; K2G", " E1A K2G "])
def test_several_mutations(cell):
    assert mutations(cell) == [("E", 1, "A"), ("K", 2, "G")]


@pytest.mark.parametrize(
    ("cell", "says"),
    [("E1A:E1G", "residue 1 twice"), ("E1A,K2G,E1A", "residue 1 twice"), ("e1a", "write E1A, in capitals"),
     ("E1*", "stop codon"), ("E1E", "changes nothing"), ("WT", "write A24G"),
     ("Glu1Ala", "write A24G"), ("E²A", "write A24G"), ("E" + "1" * 5000 + "A", "write A24G"), (None, "no mutation"),
     ("NA", "no mutation")],
)  # fmt: skip
def test_what_is_no_mutation(cell, says):
    with pytest.raises(InputError, match=says):
        mutations(cell)


def test_numbers_that_fit_pass_and_so_do_a_few_that_do_not():
    check_numbering(scan())
    check_numbering([*scan(), (PROTEIN, "W1A"), (PROTEIN, "nonsense"), (PROTEIN, None)])
    check_numbering([])


@pytest.mark.parametrize("shift", [-5, -1, 1, 2, 5])
def test_a_shift_of_the_numbers_is_named(shift):
    with pytest.raises(
        InputError, match=rf"^\d of 50 rows have .* fit their sequence; with \{-shift:+d} added to their"
    ):
        check_numbering(scan(shift, n=-6))


def test_sequences_that_are_the_mutated_ones_are_named():
    mutants = [(text[: int(cell[1:-1]) - 1] + cell[-1] + text[int(cell[1:-1]) :], cell) for text, cell in scan()]
    with pytest.raises(InputError, match=f"^0 of {len(PROTEIN)} rows .* the letter after the change stands there in "):
        check_numbering(mutants)


def test_most_rows_that_do_not_fit_end_the_run():
    with pytest.raises(InputError, match=r"1 of 4 rows .* fit their sequence: check --mutations and the sequences"):
        check_numbering([(PROTEIN, cell) for cell in ("M1A", "W17A", "C40A:C41A", "H3K")])


@pytest.mark.parametrize("shift", [-3, 1, 240])
def test_an_offset_is_accepted_where_it_is_given_and_named_where_it_is_not(shift):
    rows = scan(shift)[3:]
    check_numbering(rows, offset=-shift)
    with pytest.raises(InputError, match=rf"with \{-shift:+d} added to their positions {len(rows)} do: give --offset"):
        check_numbering(rows, advice="give --offset {}")
    with pytest.raises(InputError, match=r"with \+7 added to their positions; with"):
        check_numbering(rows, offset=7)


def test_mutated_sequences_that_begin_behind_the_first_residue_are_named():
    """As GB1's stabilities are packaged: each row has its own variant, without the first residue."""
    rows = [(text[1 : int(c[1:-1]) - 1] + c[-1] + text[int(c[1:-1]) :], c) for text, c in scan()[1:]]
    with pytest.raises(
        InputError, match=r"with -1 added to their positions the letter after the change stands there in 55: give the"
    ):
        check_numbering(rows)


def table(**columns):
    n = len(next(iter(columns.values())))
    return pl.DataFrame({"index": range(n), "name": [None] * n, **columns}, strict=False)


def test_a_scan_joins_rows_of_one_change_and_rejects_what_is_none():
    cells = ["T02A", "T2A", "Y3F:L5A", "L5A:Y3F", "K4*", "k4r", "K4X", "U4R", "K4R", "K10A", "Y3Y", "K4A", "L5V"]
    effects = [1.0, 2.0, -1.0, -2.0, 0.0, 0.0, 0.0, 0.0, None, 0.5, 0.0, 3.0, 0.25]
    read = read_scan(
        table(sequence=cells, y=effects), rejects_frame([(13, "", "the sequence is empty")]), PROTEIN[1:], "y", -1
    )
    assert {(v.index, v.name, v.effect, len(v.effects), v.sites) for v in read.variants} == {
        (0, "T2A", 1.5, 2, (1,)), (2, "Y3F:L5A", -1.5, 2, (2, 4)), (9, "K10A", 0.5, 1, (9,)), (11, "K4A", 3.0, 1, (3,)),
        (12, "L5V", 0.25, 1, (4,)),
    }  # fmt: skip
    reasons = {text: reason for _, text, reason in read.rejects.rows()}
    for cell, said in (("K4*", "stop codon"), ("k4r", "write K4R, in capitals"), ("K4X", "none of the twenty"),
                       ("U4R", "none of the twenty"), ("K4R", "no label"), ("Y3Y", "changes nothing"),
                       ("", "names no mutation")):  # fmt: skip
        assert said in reasons.pop(cell)
    assert not reasons
