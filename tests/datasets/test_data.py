"""Sequences become tokens, labels and two sides; what cannot be used is a reject or a reason, never a guess."""

import numpy as np
import polars as pl
import pytest

from isotrace.base.errors import InputError
from isotrace.datasets.annotated import prepare, untestable
from isotrace.datasets.concept_files import ConceptSource, label_columns
from isotrace.datasets.concept_table import ConceptTable
from isotrace.domains.domain import Concept, Labels
from isotrace.domains.molecule.domain import MOLECULE
from tiny_annotation import Letters, chains, rows_of

TEXTS = chains(30)


def prepared(subject, rows=None, sources=(), domain=None, **given):
    rows = rows_of(TEXTS) if rows is None else rows
    return prepare(subject, domain or Letters(), rows, sources, **{"seed": 0} | given)


def test_one_group_is_refused(rotary):
    rows = rows_of(TEXTS).with_columns(plate=pl.lit("A"))
    with pytest.raises(InputError, match="2 parts need 2 groups, and the sequences form 1"):
        prepared(rotary, rows, group_column="plate")


def test_sequences_are_ordered_by_length_and_keep_their_index(rotary):
    data = prepared(rotary)
    assert sorted(data.index) == list(range(30))
    lengths = np.diff(data.table.sequence_ptr)
    assert (np.diff(lengths) >= 0).all()
    assert len(set(lengths)) > 3
    for index, name, reading, ids in zip(data.index, data.names, data.readings, data.ids, strict=True):
        assert reading.text == TEXTS[index]
        assert name == f"m{index}"
        assert len(ids) == len(reading.units) == len(TEXTS[index]) + 2
        assert rotary.tokens(ids)[1:-1] == list(TEXTS[index])
    frame = data.sequences()
    assert frame["index"].to_list() == list(data.index)
    assert frame["side"].to_list() == ["held-out" if held else "selection" for held in data.held]
    assert data.special.sum() == 60
    seen = [(start + i, tuple(row.tolist())) for start, batch in data.batches(64) for i, row in enumerate(batch.ids)]
    assert seen == [(i, tuple(ids.tolist())) for i, ids in enumerate(data.ids)]
    assert max(batch.ids.numel() for _, batch in data.batches(64)) <= 64
    assert max(len(batch.ids) for _, batch in data.batches(64)) > 1


def test_labels_of_domain_and_sources_stand_side_by_side(rotary):
    texts = dict(enumerate(TEXTS))

    def label(index, reading):
        assert reading.text == texts[index]
        return Labels(((1, (0, 1)),), np.array([float(index), np.nan]))

    own = ConceptSource((Concept("row", "mine", "value"), Concept("start", "mine", "token")), label)
    data = prepared(rotary, sources=[own])
    names = [concept.name for concept in data.table.token_concepts]
    start = names.index("start")
    assert data.table.positive()[start] == 60
    assert np.diff(data.table.concept_ptr)[start] == 30
    assert data.table.positive()[names.index("oxygen")] == sum(text.count("O") for text in TEXTS)
    row = [concept.name for concept in data.table.sequence_concepts].index("row")
    assert data.table.numbers[:, row].tolist() == list(data.index)


def test_what_cannot_be_read_is_rejected_with_its_index_and_the_rest_goes_on(rotary):
    texts = [*TEXTS[:10], "CC?C", "C1CC", "C" * 60, *TEXTS[10:]]
    earlier = pl.DataFrame({"index": [99], "input": ["x"], "reason": ["the sequence is empty"]})
    data = prepared(rotary, rows_of(texts), rejects=earlier)
    assert data.rejects["index"].to_list() == [10, 11, 12, 99]
    assert data.rejects["input"].to_list() == ["CC?C", "C1CC", "C" * 60, "x"]
    assert data.rejects["reason"].str.len_chars().min() > 10
    assert sorted(data.index) == [i for i in range(33) if i not in (10, 11, 12)]
    clean = prepared(rotary)
    assert {r.text for r in data.readings} == {r.text for r in clean.readings}


def test_nothing_readable_is_an_error_with_the_first_reason(rotary):
    with pytest.raises(InputError, match="no sequence can be annotated; first reason"):
        prepared(rotary, rows_of(["C?", "??"]))


def test_a_nan_in_a_label_is_a_reject_with_the_reason(rotary):
    rows = rows_of(TEXTS).with_columns(logp=pl.Series([float(i) for i in range(29)] + [float("nan")]))
    data = prepared(rotary, rows, [label_columns(rows, ["value:logp"], MOLECULE)])
    assert data.rejects["index"].to_list() == [29]
    assert "logp" in data.rejects["reason"][0]
    assert "is nan in row 29" in data.rejects["reason"][0]
    assert len(data.ids) == 29


def test_two_concepts_of_one_name_are_refused(rotary):
    same = ConceptSource((Concept("oxygen", "mine", "token"),), lambda *_: Labels((), np.array([np.nan])))
    with pytest.raises(InputError, match="two concepts are called 'oxygen'"):
        prepared(rotary, sources=[same])


def test_groups_come_from_a_column(rotary):
    rows = rows_of(TEXTS).with_columns(plate=pl.Series([i // 5 for i in range(30)]))
    data = prepared(rotary, rows, group_column="plate")
    assert list(data.groups) == [str(i // 5) for i in data.index]
    assert all(len({h for h, g in zip(data.held, data.groups, strict=True) if g == str(p)}) == 1 for p in range(6))
    with pytest.raises(InputError, match="no column 'dish' for --group: give one of plate"):
        prepared(rotary, rows, group_column="dish")


def test_a_row_without_a_group_is_rejected(rotary):
    rows = rows_of(TEXTS).with_columns(plate=pl.Series([None if i == 4 else str(i) for i in range(30)]))
    data = prepared(rotary, rows, group_column="plate")
    assert data.rejects.rows() == [(4, TEXTS[4], "column 'plate' holds no group for it: fill it.")]


def test_why_concepts_cannot_be_tested(rotary):
    data = prepared(rotary)
    reasons = untestable(data.table, data.held, data.special, min_positive=20)
    names = [concept.name for concept in (*data.table.token_concepts, *data.table.sequence_concepts)]
    found = dict(zip(names, reasons, strict=True))
    assert found["carbon"] is None
    assert found["empty"] == "no token carries it"
    assert found["everywhere"] == "every token carries it"
    assert found["special"].startswith("only special tokens carry it")
    assert found["always"] == "one class only on a side"
    assert found["constant"] == "the same value everywhere on a side"
    assert found["unknown"] == "not known of any sequence of a side"
    assert found["n O"] == "too few values"  # 15 on a side
    assert untestable(data.table, data.held, data.special, min_positive=10)[names.index("n O")] is None


def test_rare_concepts_are_counted_on_each_side():
    """Carried by 30 tokens of one side and 4 of the other."""
    labels = [Labels(tuple((0, (i,)) for i in range(4 if s else 30)), np.full(2, np.nan)) for s in range(2)]
    table = ConceptTable.of([Concept(n, "t", "token") for n in "ab"], [40, 40], labels)
    held, special = np.array([False, True]), np.zeros(80, dtype=bool)
    assert untestable(table, held, special, 4)[0] is None
    assert untestable(table, held, special, 5)[0] == "on fewer than 5 tokens of a side"
    everything = [Labels(tuple((0, (i,)) for i in range(40 - 9 * s)), np.full(2, np.nan)) for s in range(2)]
    table = ConceptTable.of([Concept(n, "t", "token") for n in "ab"], [40, 40], everything)
    assert untestable(table, held, special, 5)[0] == "every token of a side carries it"


def test_classes_need_ten_of_either_sort_on_each_side():
    concepts = [Concept(n, "t", "class") for n in ("even", "rare", "half known")]
    numbers = np.zeros((60, 3))
    numbers[::2, 0] = 1
    numbers[:9, 1] = numbers[30:39, 1] = 1
    numbers[:, 2] = np.where(np.arange(60) < 30, np.nan, np.arange(60) % 2)
    table = ConceptTable.of(concepts, [3] * 60, [Labels((), row) for row in numbers])
    held = np.arange(60) >= 30
    reasons = untestable(table, held, np.zeros(180, dtype=bool), 20)
    assert reasons[0] is None
    assert reasons[1] == "too few sequences of a class on a side"
    assert reasons[2] == "not known of any sequence of a side"
