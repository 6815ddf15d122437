"""What single cells say: the words for nothing, numbers and what is almost one, the names of columns."""

import polars as pl
import pytest
from test_concept_files import Chain, instances, reading

from isotrace.base.errors import InputError
from isotrace.datasets.concept_files import label_columns
from isotrace.datasets.inputs import read_inputs
from isotrace.datasets.reading.cells import are_missing, column_of, free_names, is_missing, number, plain, typed
from isotrace.datasets.task_labels import kind_of

NOTHING = ["", " ", "NA", "na", "N/A", "n/a", "#N/A", "#NA", "NaN", "nan", "null", "NULL", "None", "-", "?", ".", "–"]
NOTHING += ["<NA>", "\\N", "#DIV/0!", " NA "]


@pytest.mark.parametrize("word", NOTHING)
def test_words_for_nothing_are_nothing_everywhere(word):
    assert is_missing(word)
    assert are_missing(["0", word, "1"], "x") == [False, True, False]
    rows, rejects = read_inputs(pl.DataFrame({"sequence": ["MK", word], "name": ["a", "b"]}))
    assert (rows["sequence"].to_list(), rejects["index"].to_list()) == (["MK"], [1])
    source = label_columns(rows_of(["0", word, "1"]), ["class-if-known:x"], Chain())
    assert [concept.name for concept in source.concepts] == ["x=1"]


def rows_of(labels):
    return read_inputs(pl.DataFrame({"sequence": ["A", "C", "D"], "x": labels}))[0]


@pytest.mark.parametrize("word", ["N", "Na", "[Na+]", "0", "no", "*", "nonsense", "nil", "A"])
def test_what_only_looks_like_nothing_is_kept(word):
    assert is_missing(word) == (word == "Na")  # as text; in brackets it is sodium
    assert not is_missing(0)
    assert not is_missing(False)
    assert is_missing(float("nan"))


def test_a_minus_beside_a_plus_is_a_label():
    assert are_missing(["+", "-", "NA"], "x") == [False, False, True]
    assert are_missing(["a", "-", "b"], "x") == [False, True, False]


@pytest.mark.parametrize(
    "labels", [["none", "mild", "severe"], ["active", "None"], ["a", "unknown"], ["a", "b", "n.d."]]
)
def test_a_word_that_may_be_a_class_or_nothing_is_asked_about(labels):
    with pytest.raises(InputError, match=r"which may be a class or stand for no label: empty those cells"):
        are_missing(labels, "column 'x'")
    assert are_missing([*"0123", "None"], "x") == [False] * 4 + [True]  # among numbers it is nothing
    assert are_missing(["0", "1", "n.d."], "x") == [False] * 3  # and this no number, which the kind of task says
    with pytest.raises(InputError, match=r"x holds 'n\.d\.', which may be"):
        are_missing(["0", "1", "n.d."], "x", classes=True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0,5", "decimal comma"), ("-1,25e3", "decimal comma"), ("1,234.5", "thousands"), ("1 234 567", "thousands"),
        (">10", "a bound"), ("< 0.5", "a bound"), ("≥3", "a bound"), ("~5", "a bound"), ("−0.5", "another sign"),
        ("5 %", "a unit"), ("1.5 µM", "a unit"), ("5.1 ± 0.2", "its error"), ("1,000", "a comma"),
        ("inf", "not finite"), ("-Infinity", "not finite"), ("1e999", "not finite"),
        ("nan", "not finite"), ("n.d.", "no number"), ("1_000", "no number"), ("٣", "no number"), ("0x10", "no number"),
        ("", "no number"), ("-", "no number"), ("1.2.3", "no number"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_quoted_with_the_reason(text, says):
    with pytest.raises(InputError, match=says) as caught:
        number(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["0", "-1", "+1.5", ".5", "5.", "1e-3", " 2 ", "007"])
def test_numbers(text):
    assert number(text) == float(text)


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["0,5", "1,0", "2,5"], "'0,5' in row 3 is written with a decimal comma: write a point .2 more rows"),
        (["0.5", ">10", "2.5"], "'>10' in row 4 is a bound, no number: empty the cell"),
        (["0.5", "1", "n.d."], "'n.d.' in row 5 is no number: correct it or empty the cell. If"),
        (["0", "1", "x"], "'x' in row 5 is no number"),
    ],
)
def test_a_few_words_among_numbers_are_named_with_their_row(labels, says):
    with pytest.raises(InputError, match=says) as caught:
        kind_of(labels, [9] * 3, [3, 4, 5], "dose")
    assert "column 'dose'" in str(caught.value)
    assert "--task class" in str(caught.value)


def test_labels_of_residues_may_spell_a_word_for_nothing():
    rows = read_inputs(pl.DataFrame({"sequence": ["AC", "ACD", "ACDE"], "x": ["NA", "NA", "HNAH"]}))[0]
    source = label_columns(rows, ["token:x"], Chain())
    assert instances(source, 0, reading("AC")) == {"x=N": [(1,)], "x=A": [(2,)]}
    with pytest.raises(InputError, match="token:x is NA in row 1 of the data"):
        source.label(1, reading("ACD"))


def test_columns_are_found_by_the_users_names():
    table = read_inputs(pl.DataFrame({"SMILES": ["C"], "ID": ["a"], "logD": [1.0], "Dose": [2]}))[0]
    assert column_of(table, "SMILES", "--group") == "sequence"
    assert column_of(table, "ID", "--group") == "name"
    assert column_of(table, "logD", "--label") == "logD"
    for wanted, close in (("logd", "logD"), ("dosis", "Dose")):
        with pytest.raises(InputError, match=f"no column '{wanted}' for --label: did you mean '{close}'. give one of"):
            column_of(table, wanted, "--label")
    with pytest.raises(InputError, match="for --label: give one of logD, Dose") as caught:
        column_of(table, "q", "--label")
    assert "index" not in str(caught.value)


def test_names_that_are_taken_get_a_prefix_until_they_are_free():
    assert free_names(["name", "input_name", "y"], {"name"}) == {
        "name": "input_input_name", "input_name": "input_name", "y": "y"
    }  # fmt: skip


def test_blanks_around_numbers_do_not_make_text_of_them():
    assert typed(pl.Series([" 1", "2 ", None, " "])).to_list() == [1, 2, None, None]
    assert typed(pl.Series(["01", " 2"])).to_list() == ["01", " 2"]


def test_names_of_columns_fit_in_a_line():
    wide = pl.DataFrame({f"mol {i}\n(nM)": ["C"] for i in range(40)})
    with pytest.raises(InputError, match=r"one of mol 0 \(nM\), mol 1 \(nM\), .*, mol 29 \(nM\) and 10 more\.$"):
        read_inputs(wide)
    with pytest.raises(InputError, match="and 10 more"):
        read_inputs(wide, column="smiles")


def test_whole_numbers_that_became_floats_are_the_same_classes():
    assert [plain(x) for x in (1.0, 0.5, 3, None, True, "1.0")] == ["1", "0.5", "3", None, "True", "1.0"]
