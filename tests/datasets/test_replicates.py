"""Tables of measurements made ready: repeats, bounds beside numbers, classes that disagree."""

from collections import Counter

import numpy as np
import polars as pl
import pytest

from isotrace.base.errors import InputError
from isotrace.datasets.inputs import read_inputs
from isotrace.datasets.replicates import cleaned
from isotrace.domains.molecule import domain as molecule
from isotrace.domains.reaction.domain import REACTION

OTHERS = [("C" * n, f"{n}.5") for n in range(4, 30)]  # so that it is a column of numbers
TWICE = ["OCC", "C(O)C", "CCO"]


def ready(pairs, **given):
    table = pl.DataFrame(pairs, schema=["smiles", "y"], orient="row")
    rows, rejects = read_inputs(table)
    return cleaned(rows, rejects, molecule.MOLECULE, **{"label": "y", "split": None, "salts": "strip"} | given)


def test_repeats_scatter_about_their_means_equal_ones_too():
    found = ready([("CCO", "1.0"), ("OCC", "3.0"), ("CCN", "2.0"), ("NCC", "2.0"), ("C(C)N", "2.00"), *OTHERS])
    assert found.spread == pytest.approx(np.sqrt(2 / 3)), "two squares of one, over 1 + 2 degrees of freedom"
    assert found.rows["y"].to_list()[:2] == ["2.0", "2.0"]
    assert found.counts["repeats"] == 3
    assert ready(OTHERS).spread is None
    assert ready([("CCO", "1.5"), ("OCC", "1.5"), *OTHERS]).spread == 0


@pytest.mark.parametrize("word", [">10", "5,2", "see note"])
def test_what_is_no_number_leaves_the_number_beside_it_alone(word):
    found = ready([(TWICE[0], word), (TWICE[1], "1.0"), (TWICE[2], "2.0"), *OTHERS])
    kept = dict(found.rows.select("index", "y").rows())
    assert kept[1] == "1.5"
    assert kept[0] == word, "it is refused by itself, with its reason, where labels are read"
    assert found.rejects["index"].to_list() == [2]
    assert found.spread == pytest.approx(np.sqrt(0.5))


@pytest.mark.parametrize("labels", [("0", "1"), ("active", "inactive")])
def test_classes_that_disagree_are_no_number_between_them(labels):
    few = [("C" * n, labels[n % 2]) for n in range(4, 12)]
    found = ready([("CCO", labels[0]), ("OCC", labels[1]), ("CCN", labels[1]), ("NCC", labels[1]), *few])
    assert found.spread is None
    assert set(found.rows["y"]) == set(labels)
    why = dict(found.rejects.select("index", "reason").rows())
    assert set(why) == {0, 1, 3}
    assert "with another label" in why[0]
    assert why[3] == "it repeats row 2, which has its label"
    assert ready([("CCO", "0"), ("OCC", "1"), *few], kind="regression").rows["y"][0] == "0.5"


def test_a_text_is_parsed_once(monkeypatch):
    parsed, parse = Counter(), molecule.parse
    monkeypatch.setattr(molecule, "parse", lambda text: parsed.update([text]) or parse(text))
    ready([("CCO", "1.0"), ("CCO", "2.0"), ("CCN.Cl", "1.5"), ("CCN.Cl", "1.5"), *OTHERS])
    assert set(parsed.values()) == {1}
    assert {"CCO", "CCN.Cl", "CCN"} <= {*parsed}


def test_a_reaction_is_the_same_however_it_is_written():
    same = REACTION.same("OCC.CC(=O)O>[Na+].[Cl-]>CCOC(C)=O.O")
    assert REACTION.same("CC(O)=O.CCO>[Cl-].[Na+]>O.O(CC)C(C)=O") == same
    assert REACTION.same("CC(O)=O.CCO.O>[Cl-].[Na+]>O(CC)C(C)=O") != same
    assert REACTION.same("N->[Pt]>>N.[Pt]") == REACTION.same("[Pt]<-N>>[Pt].N"), "a dative bond is no arrow"
    with pytest.raises(InputError):
        REACTION.same("CCO>>no molecule")
