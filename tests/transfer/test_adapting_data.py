"""What is learned from: parts, missing labels, rejects, and data that cannot be used."""

import numpy as np
import polars as pl
import pytest
from adapting_table import MOLECULES, frame, table

import tiny
from isotrace.base.errors import InputError


@pytest.fixture(scope="module")
def subject(folders):
    return tiny.load_tiny(folders["esm-rotary"])


def test_parts_share_no_group_and_a_limit_counts_what_stops_the_training(subject):
    found = table(subject, "number")
    groups = {part: {found.examples[i].group for i in found.members(part)} for part in ("train", "valid", "test")}
    assert not groups["train"] & groups["valid"] | groups["train"] & groups["test"] | groups["valid"] & groups["test"]
    assert len(found.examples) == len(MOLECULES)
    few = table(subject, "number", limit=24)
    assert len(few.members("train", "valid")) == 24
    assert len(few.members("valid")) > 0
    test = [[t.examples[i].text for i in t.members("test")] for t in (found, few)]
    assert test[0] == test[1]
    assert few.labels(few.members("test")).shape == (len(few.members("test")), 1)


def test_labels_that_are_missing_are_nan_and_no_rejects(subject):
    rows = frame().with_columns(
        pl.when(pl.col("index") % 3 == 0).then(None).otherwise(pl.col("number")).alias("number")
    )
    found = table(subject, "number", "first", rows=rows)
    missing = np.isnan(found.y[:, 0])
    assert missing.sum() == sum(i % 3 == 0 for i in range(len(MOLECULES)))
    assert not np.isnan(found.y[:, 1]).any()
    assert found.rejects.is_empty()
    assert [p.columns for p in found.properties] == [slice(0, 1), slice(1, 3 + 1)]
    assert found.properties[1].outputs == ("C", "N", "X")


def test_bad_rows_are_rejected_with_their_reason(subject):
    rows = frame().with_columns(
        pl.when(pl.col("index") == 2).then(pl.lit("5 nM")).when(pl.col("index") == 3).then(pl.lit("1,234.5"))
        .otherwise(pl.col("number")).alias("number"),
        pl.when(pl.col("index") == 4).then(pl.lit("C1CC")).otherwise(pl.col("sequence")).alias("sequence"),
    )  # fmt: skip
    rejects = table(subject, "number", rows=rows).rejects
    assert rejects["index"].to_list() == [2, 3, 4]
    assert ["5 nM" in reason for reason in rejects["reason"]] == [True, False, False]


@pytest.mark.parametrize(
    ("change", "label", "given", "reason"),
    [
        ({"oxygen": pl.lit("yes")}, "oxygen", {}, "one label of 'oxygen' only"),
        ({"number": pl.when(pl.col("index") < 15).then(pl.col("number"))}, "number", {}, "too few: give at least 20"),
        ({"sequence": pl.when(pl.col("index") == 47).then(pl.lit("CCC")).otherwise(pl.col("sequence"))}, "number",
         {"split": "part"}, "stand in two parts"),
        ({"site": pl.col("site")}, ("site", "number"), {}, "do not mix"),
        ({"site": pl.col("site")}, ("number", "number"), {}, "named twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told(subject, change, label, given, reason):
    part = pl.when(pl.col("index") < 36).then(pl.lit("train")).otherwise(pl.lit("test"))
    rows = frame().with_columns(part.alias("part"), **change)
    rows = rows.with_columns(pl.when(pl.col("index") < 36).then(pl.lit("a")).otherwise(pl.lit("b")).alias("half"))
    labels = (label,) if isinstance(label, str) else label
    with pytest.raises(InputError, match=reason):
        table(subject, *labels, rows=rows, **{"group": "half"} | given if given else {})
