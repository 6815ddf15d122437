"""Labels follow their rule to the letter, examples and histograms show what is active, every row has its reason."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from isotrace.annotation.cards.describe import UNEXPLAINED, _reason, label
from isotrace.annotation.cards.examples import BINS, SIZES, collect, summaries
from isotrace.datasets.annotated import prepare
from tiny_annotation import Letters, chains, csc, rows_of

PAIR = {"feature": 0, "concept": "ring", "f1": 0.7, "f1_ci_low": 0.6, "f1_ci_high": 0.8, "null_f1": 0.3, "q": 0.01,
        "f1_selection": 0.7}  # fmt: skip
WHOLE = {"feature": 0, "concept": "acid", "kind": "class", "q": 0.01, "ci_low": 0.85, "auroc": 0.9,
         "effect_selection": 0.8}  # fmt: skip


def labelled(*token: dict, whole: tuple[dict, ...] = ()) -> list[dict]:
    sequence = pl.DataFrame([WHOLE | change for change in whole]) if whole else pl.DataFrame()
    schema = {"concept": pl.String, "feature": pl.Int64}
    pairs = pl.DataFrame([PAIR | change for change in token], schema_overrides=schema)
    pairs = pairs if token else pl.DataFrame([PAIR], schema_overrides=schema).clear()
    return label(pairs, sequence).sort("feature").to_dicts()


def test_a_label_asks_for_f1_q_and_an_interval_above_its_null():
    assert labelled({})[0]["label"] == "ring"
    assert labelled({"f1": 0.5, "f1_ci_low": 0.31, "q": 0.049})[0]["label"] == "ring"
    for change in ({"f1": 0.49}, {"q": 0.05}, {"f1_ci_low": 0.3}, {"f1": None, "f1_ci_low": None}):
        found = labelled(change)[0]
        assert (found["label"], found["concept"]) == (None, "ring"), change


def test_the_best_concept_that_holds_labels_a_feature():
    better_there = {"concept": "atom", "f1_selection": 0.9, "f1": 0.4}  # best on the selection side, does not hold
    worse = {"concept": "bond", "f1_selection": 0.6, "f1": 0.99}
    found = labelled({}, better_there, worse, {"feature": 4, "q": 0.2})
    assert [(row["feature"], row["label"]) for row in found] == [(0, "ring"), (4, None)]
    assert found[0]["f1"] == 0.7  # not the largest held-out F1: choosing by that would score what it chose
    assert labelled(better_there, {"q": 1.0})[0]["concept"] == "atom"


def test_a_class_labels_what_no_token_concept_does():
    found = labelled({"q": 0.3}, whole=({},))[0]
    assert (found["label"], found["concept"], found["auroc"], found["q"]) == ("acid", "acid", 0.9, 0.01)
    assert [found[name] for name in ("f1", "f1_ci_low", "f1_ci_high", "null_f1")] == [None] * 4
    assert labelled({}, whole=({},))[0]["label"] == "ring"
    assert labelled(whole=({"feature": 7},)) == [found | {"feature": 7}]
    for change in ({"ci_low": 0.8}, {"q": 0.05}, {"ci_low": None}):
        assert labelled({"q": 0.3}, whole=(change,))[0]["label"] is None, change
    value = {"kind": "value", "auroc": None, "ci_low": 0.51}
    assert labelled({"q": 0.3}, whole=(value,))[0]["label"] == "high acid"
    against = {"effect_selection": -0.8}
    assert labelled({"q": 0.3}, whole=(value | against,))[0]["label"] == "low acid"
    assert labelled({"q": 0.3}, whole=(against,))[0]["label"] == "not acid"
    assert labelled({"q": 0.3}, whole=(value | {"ci_low": 0.5},))[0]["label"] is None
    best = labelled({"q": 0.3}, whole=({}, {"concept": "base", "ci_low": 0.95}))[0]
    assert best["label"] == "base"


def test_every_unexplained_feature_has_the_reason_that_applies():
    row = {"label": UNEXPLAINED, "density": 0.1, "concept": "ring", "f1": 0.7, "q": 0.01}
    changes = {
        "never active on these sequences": {"density": 0.0, "concept": None, "f1": None, "q": None},
        "fires with no tested concept on the selection side": {"concept": None, "f1": None, "q": None},
        "best held-out F1 below 0.5": {"f1": 0.49},
        "q not below 0.05": {"q": 0.05},
        "interval of F1 reaches its shuffled F1": {},
    }
    table = pl.DataFrame([row | change for change in changes.values()] + [row | {"label": "ring"}])
    assert table.select(_reason()).to_series().to_list() == [*changes, None]


@pytest.fixture
def shown(rotary):
    """Chains and activations of three features: silent, firing on every oxygen, firing on every other one."""
    data = prepare(rotary, Letters(), rows_of(chains(40)), [], seed=0)
    rng = np.random.default_rng(0)
    oxygen = np.asarray([unit.text == "O" for reading in data.readings for unit in reading.units])
    active = np.stack([np.zeros(len(oxygen)), oxygen, oxygen & (rng.random(len(oxygen)) < 0.5)], axis=1)
    return data, (active * (1 + rng.random(active.shape))).astype(np.float32)


def test_examples_are_the_strongest_the_middling_and_those_missed(shown):
    data, dense = shown
    oxygen = [concept.name for concept in data.table.token_concepts].index("oxygen")
    found = collect(csc(dense), data, {2: oxygen}, seed=0)
    assert found["feature"].unique().to_list() == [1, 2]
    bounds = data.table.sequence_ptr
    peaks = {index: dense[a:b].max(axis=0) for index, a, b in zip(data.index, bounds[:-1], bounds[1:], strict=True)}
    for feature in (1, 2):
        own = found.filter(feature=feature)
        assert own["index"].is_unique().all()
        top = sorted((peak[feature] for peak in peaks.values()), reverse=True)
        assert own.filter(group="top")["activation"].to_list() == pytest.approx(top[: SIZES["top"]])
        active = [value for value in top if value > 0]
        third = len(active) // 3
        middle = own.filter(group="middle")["activation"].to_list()
        assert len(middle) == SIZES["middle"]
        assert all(active[2 * third - 1] <= value <= active[third] for value in middle)
        for row in own.to_dicts():
            start = bounds[data.index.index(row["index"])]
            stop = bounds[data.index.index(row["index"]) + 1]
            assert row["activation"] == pytest.approx(peaks[row["index"]][feature])
            assert row["positions"] == np.flatnonzero(dense[start:stop, feature]).tolist()
            assert row["values"] == pytest.approx(dense[start:stop, feature][row["positions"]].tolist())
    missed = found.filter(feature=2, group="near-miss")
    assert missed.height == SIZES["near-miss"]
    texts = dict(zip(data.index, (reading.text for reading in data.readings), strict=True))
    assert all("O" in texts[index] for index in missed["index"])
    assert missed["activation"].to_list() == [0, 0]
    assert missed["positions"].list.len().to_list() == [0, 0]
    weak = found.filter(feature=1, group="near-miss")["activation"]  # a feature without a concept
    assert weak.max() <= np.quantile([peak[1] for peak in peaks.values() if peak[1]], 0.4)
    assert collect(csc(dense), data, {2: oxygen}, seed=0).equals(found)


def test_summaries_are_those_of_the_dense_columns(shown):
    _, dense = shown
    found = summaries(csc(dense))
    assert found.row(0) == (0, 0.0, None, None, [])
    for feature in (1, 2):
        row, column = found.row(feature, named=True), dense[:, feature]
        values = column[column > 0]
        assert row["density"] == pytest.approx(len(values) / len(column))
        assert row["max_activation"] == pytest.approx(values.max())
        assert row["mean_activation"] == pytest.approx(values.mean(), rel=1e-5)
        edges = np.linspace(0, values.max(), BINS + 1)
        counts = [((values >= a) & (values < b)).sum() for a, b in pairwise(edges)]
        counts[-1] += (values == values.max()).sum()
        assert row["histogram"] == counts
