"""What one feature reads, follows and writes, as a command and from Python."""

import json

import pytest

import isotrace
import tiny
from isotrace.base.errors import InputError
from isotrace.cli.features import show
from isotrace.verbs.features import FeaturesRequest
from shell import said

TEXTS = ["CCO", "CC(=O)N", "c1cc[nH]c1", "OCCN"]


@pytest.fixture(scope="module")
def world(relu_subject):
    return relu_subject, tiny.exact_dictionary(relu_subject)


@pytest.fixture(scope="module")
def found(world):
    return isotrace.features(*world, TEXTS, feature="1.2", permutations=2, shown=3)


def test_the_rows_say_what_they_are(found):
    """Shares add up to one; rows of a relation stand in the order of their size."""
    frame, summary = found.to_frame(), found.summary
    assert {*frame["relation"]} == {"reads", "follows", "writes", "promotes"}
    assert sum(summary["shares"].values()) == pytest.approx(1)
    assert abs(summary["shares"]["errors"]) < 1e-5, "the dictionary is exact"
    assert set(frame.filter(relation="writes")["layer"]) == {2}
    assert set(frame.filter(relation="reads").drop_nulls("feature")["layer"]) == {0}
    assert frame.filter(relation="follows")["route"].str.starts_with("head").all()
    edges = frame.drop_nulls("feature")
    within = edges.drop_nulls("ci_low")
    assert within.height >= 3
    assert (within["ci_low"] <= within["gives"]).all()
    assert (within["gives"] <= within["ci_high"]).all()
    assert edges["above_null"].to_list() == (edges["gives"].abs() > edges["threshold"]).to_list()
    assert {row["kind"] for row in summary["kinds_of_token"]} == {"atom", "bond", "branch", "ring", "special"}
    assert sum(row["n"] for row in summary["kinds_of_token"]) == summary["n_tokens"]


def test_the_same_data_gives_the_same_rows(world, found):
    again = isotrace.features(*world, TEXTS, feature="1.2", permutations=2, shown=3)
    assert again.to_frame().equals(found.to_frame())
    assert again == found


def test_pages_and_folders(world, found, tmp_path):
    folder = found.save(tmp_path / "run")
    assert isotrace.load(folder).to_frame().equals(found.to_frame())
    assert "follows, at other tokens" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"feature": "9.0"}, "no feature 9.0: layers are 0, 1, 2"),
        ({"feature": "1.99"}, "features 0 to 23"),
        ({"feature": "one"}, "give LAYER.FEATURE"),
        ({}, "give --data FILE, or one feature"),
    ],
)
def test_what_cannot_be_asked(world, given, message):
    with pytest.raises(InputError, match=message):
        isotrace.features(*world, **given)


def test_without_sequences_or_a_shelf(world):
    with pytest.raises(InputError, match="no sequences on its shelf"):
        isotrace.features(*world, feature="1.2")


def test_the_bundled_dictionary_brings_its_own_sequences():
    """As the command is printed in docs/features.md, with fewer sequences; names come from the shelf."""
    words = ["bundled:molm", "bundled:molm-clt", "--feature", "0.438", "--limit", "8", "--permutations", "1"]
    summary = json.loads(said("features", *words, "--json"))
    assert summary["n_sequences"] == 8
    assert (summary["layer"], summary["feature"]) == (0, 438)
    assert summary["label"] is not None
    assert {row["relation"] for row in summary["connections"]} == {"reads", "follows", "writes", "promotes"}
    assert all(row.get("feature") is None for row in summary["connections"] if row["relation"] == "reads")


def test_what_is_printed(world, found, capsys):
    show(found.summary, FeaturesRequest(subject=world[0], dictionary=world[1], data=TEXTS, feature="1.2"))
    said_of = capsys.readouterr().out
    for words in (
        "feature 1.2",
        "of 4 sequences",
        "shares of the variance",
        "follows, at other tokens",
        "above the null",
    ):
        assert words in said_of
