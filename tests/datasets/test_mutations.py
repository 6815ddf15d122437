"""Mutations as text, and how they are counted."""

import pytest

from isotrace.base.errors import InputError
from isotrace.datasets.mutations import check_numbering, mutations

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
    [("E1A:E1G", "residue 1 twice"), ("E1A,K2G,E1A", "residue 1 twice"), ("e1a", "write A24G"), ("WT", "write A24G"),
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
    with pytest.raises(InputError, match="1 of 4 rows have mutations that fit their sequence: check --mutations"):
        check_numbering([(PROTEIN, cell) for cell in ("M1A", "W17A", "C40A:C41A", "H3K")])
