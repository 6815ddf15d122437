"""Spellings of a molecule: a head of the order and one of the contents, and a stream that brings the order back."""

import numpy as np
import pytest
from rdkit import Chem

from isotrace.studies.effects.cipher_contrast import (
    Case,
    case_of,
    contrast_rows,
    injection_rows,
    modulation_rows,
    renamed,
    written,
)
from isotrace.studies.worlds.planted_weights import Weights

ATTEND = 16.0


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """0.0 writes to every token what stands before it; 0.1 averages N over the sequence; 1.0 moves from the O to every
    token whether N stands before that O. The logits of C hear 0.1 and 1.0."""
    places = [f"position {p}" for p in range(16)]
    w = Weights([*places, "token N", "token O", "token C", "token <mask>", "before N", "answer C"])
    w.head(0, [(places[p], places[p - 1], ATTEND) for p in range(1, 16)], [("token N", "before N", 1.0)])
    w.head(0, [], [("token N", "answer C", 3.0)])
    w.head(1, [(tuple(places), "token O", ATTEND)], [("before N", "answer C", 1.0)])
    return w.load(tmp_path_factory.mktemp("spelled"))


def pair(subject, canonical, order, atoms):
    """Masked: the last atom. `atoms`: those of the second spelling by their numbers in the first."""
    last = len(atoms) - 1
    one, two = written(subject, canonical, range(len(atoms)), last), written(subject, order, atoms, last)
    return Case(one, two, None)


@pytest.fixture(scope="module")
def cases(subject):
    """NOCCC and its like, read from either end: the C at the end is masked."""
    texts = ["NOCCC", "NONCC", "NONNC", "NOCNC"] * 3
    return [pair(subject, text, text[-2::-1] + "C", (3, 2, 1, 0, 4)) for text in texts]


def test_the_head_of_the_order_is_told_from_that_of_the_contents(subject, cases):
    rows = {(r["kind"], r["layer"], r["component"]): r for r in contrast_rows(subject, cases, 0)}
    contents, order = rows["head", 0, 1], rows["head", 1, 0]
    assert contents["ratio"] < 0.05 < contents["molecule"]
    assert not contents["format"]
    assert order["order"] > 10 * contents["order"]
    assert order["ratio"] > 1
    assert order["format"]


def test_the_stream_brings_the_order_back_as_long_as_somebody_reads_it(subject, cases):
    rows = injection_rows(subject, cases, 0)
    assert rows[0]["restored"] == pytest.approx(1, abs=0.02)
    assert [row["restored"] for row in rows[1:]] == pytest.approx([0, 0], abs=0.02)
    # 1.0 finds the O by what it is, wherever it is put
    assert rows[0]["shuffled"] == pytest.approx(1, abs=0.02)
    assert rows[0]["molecules"] + rows[0]["left_out"] == len(cases)
    assert rows[0]["molecules"] >= 6


def test_a_dose_of_the_gate_is_answered_in_proportion(subject, cases):
    rows = [row for row in modulation_rows(subject, cases, 0) if row["head"] == "gate"]
    assert rows[0]["layer"] in (0, 1)
    changes = {row["dose"]: row["change"] for row in rows}
    assert changes[1.0] == pytest.approx(0, abs=1e-5)
    assert changes[0.0] < -0.1
    assert changes[2.0] == pytest.approx(-changes[0.0], rel=0.05)
    assert changes[-1.0] == pytest.approx(2 * changes[0.0], rel=0.05)


def test_ring_digits_are_renamed_and_nothing_else():
    assert renamed("C1CC1[13CH3]") == "C5CC5[13CH3]"
    assert renamed("CCO") is None
    assert renamed("C%10CC%10") is None
    for smiles in ("c1ccc2ccccc2c1", "O=C1NC(=O)C2CC12"):
        assert Chem.CanonSmiles(str(renamed(smiles))) == Chem.CanonSmiles(smiles)


def test_atoms_keep_their_numbers_through_spellings(subject):
    case = case_of(subject, "NOCCNC", np.random.default_rng(0))
    assert case is not None
    for a, at in case.canonical.place.items():
        if a in case.order.place and case.canonical.position != at:
            tokens = (w.batch.ids[0, w.place[a]] for w in (case.canonical, case.order))
            assert len({int(t) for t in tokens}) == 1
