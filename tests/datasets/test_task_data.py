"""Labelled sequences of a task: kinds, parts, groups, and everything a table can get wrong."""

import numpy as np
import polars as pl
import pytest
import torch

import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.datasets.inputs import rejects_frame
from isotrace.datasets.tasks import PARTS, kind_of, prepare
from isotrace.discovery.tasks.readout import fit_readout
from isotrace.domains.molecule.domain import MOLECULE
from isotrace.domains.protein.domain import PROTEIN
from tiny_tasks import molecules, rows, task

N = len(molecules())
PEPTIDES = ["CNCCS", "NCSCC", "SSNCI", "INCSC", "CCNIS", "NNCSI", "SCINC", "ICSNN"]


def groups_of(data, part):
    return {example.group for example in data.parts[part]}


def test_kinds_told_from_labels():
    assert kind_of(["1", "0", "1"], [3, 3, 3]) == "class"
    assert kind_of(["101", "010"], [3, 3]) == "residue"
    assert kind_of(["yes", "no"], [3, 2]) == "class"
    assert kind_of(["0.5", "1"], [3, 2]) == "regression"
    assert kind_of([str(i) for i in range(20)], [3] * 20) == "class"
    assert kind_of([str(i) for i in range(21)], [3] * 21) == "regression"
    assert kind_of(["1", "x", "y"], [3] * 3) == "class"
    assert kind_of(["101", "010", "0"], [3] * 3) == "residue"  # the one that is too short is a reject of its own


def test_groups_are_dealt_out_whole_and_parts_are_ordered(rotary):
    data = task(rotary)
    assert (data.kind, data.classes, data.label) == ("class", ("0", "1"), "label")
    groups = [groups_of(data, part) for part in PARTS]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert sum(len(data.parts[part]) for part in PARTS) == N
    share = {part: len(data.parts[part]) / N for part in PARTS}
    assert share == pytest.approx({"fit": 0.5, "discover": 0.25, "report": 0.25}, abs=0.1)
    texts, marked = zip(*molecules(), strict=True)
    for part in PARTS:
        lengths = [len(e.ids) for e in data.parts[part]]
        assert lengths == sorted(lengths)
        for example in data.parts[part]:
            assert example.text == texts[example.index]
            assert example.y == marked[example.index]
            assert example.ids.tolist() == rotary.tokenize([example.text]).ids[0].tolist()
            assert example.group == MOLECULE.groups([example.text])[0]
    assert [e.text for e in task(rotary).parts["fit"]] == [e.text for e in data.parts["fit"]]
    other = task(rotary, seed=1)
    assert {e.text for e in other.parts["fit"]} != {e.text for e in data.parts["fit"]}


def test_batches_hold_everything_once_padded(rotary):
    data = task(rotary)
    made = data.batches("report", 60, rotary)
    assert len(made) > 3
    assert np.concatenate([numbers for numbers, _ in made]).tolist() == list(range(len(data.parts["report"])))
    for numbers, batch in made:
        assert batch.ids.numel() <= 60 or len(numbers) == 1
        expected = rotary.tokenize([data.parts["report"][i].text for i in numbers])
        assert torch.equal(batch.ids, expected.ids)
        assert torch.equal(batch.mask, expected.mask)


def named(parts, **given):
    """Every molecule its own group, and parts by the pattern repeated."""
    names = [parts[i % len(parts)] for i in range(N)]
    return rows(part=names, mine=[str(i) for i in range(N)], **given)


def test_named_parts(rotary):
    data = task(rotary, named(["train", "train", "VALID", "val", "test", "Test"]), split="part", group="mine")
    assert [len(data.parts[part]) for part in PARTS] == [N // 3] * 3
    assert {e.index % 6 for e in data.parts["discover"]} == {2, 3}
    two = task(rotary, named(["train", "train", "test", "test"]), split="part", group="mine")
    assert [len(two.parts[part]) for part in PARTS] == [N // 4, N // 4, N // 2]
    assert {e.index % 4 for e in two.parts["report"]} == {2, 3}
    few = task(rotary, named(["train", "train", "test", "test"]), split="part", group="mine", limit=8)
    assert [len(few.parts[part]) for part in PARTS] == [N // 4, 8, 8]
    assert {e.text for e in few.parts["report"]} < {e.text for e in two.parts["report"]}


def test_classes_in_their_natural_order(rotary):
    names = ["10", "9", "b", "a", "-1"]
    data = task(
        rotary, rows([names[i % 5] for i in range(N)], mine=[str(i) for i in range(N)]), kind="class", group="mine"
    )
    assert data.classes == ("-1", "9", "10", "a", "b")
    assert {(e.index % 5, e.y) for part in PARTS for e in data.parts[part]} == {(4, 0), (1, 1), (0, 2), (3, 3), (2, 4)}


def test_residue_labels_follow_the_atoms(rotary):
    """Syntax carries no label; a token of several atoms has one if any of them has."""
    texts = [text for text, _ in molecules()]
    marks = ["".join("1" if a.GetSymbol() in ("Br", "Cl") else "0" for a in MOLECULE.read(
        t, rotary.tokens(rotary.tokenize([t]).ids[0]), rotary.tokenize([t]).offsets[0]).parsed.GetAtoms())
        for t in texts]  # fmt: skip
    data = task(rotary, rows(marks))
    assert data.kind == "residue"
    for example in data.parts["fit"]:
        tokens = rotary.tokens(torch.from_numpy(example.ids))
        assert [tokens[p] for p, y in zip(example.places, example.y, strict=True) if y] in (["Br"], ["Cl"])
        assert "(" not in {tokens[p] for p in example.places}
        assert len(example.places) == example.ids.size - 2 - sum(t in "()1" for t in tokens)


def test_masked_tokens(rotary):
    data = task(rotary, rows(["2"] * N), kind="masked")
    for example in data.parts["fit"]:
        own = rotary.tokenize([example.text]).ids[0].numpy()
        (place,) = example.places
        assert example.ids[place] == rotary.mask_id
        assert example.y == own[place]
        assert np.flatnonzero(example.ids != own).tolist() == [place]
    table = rows(["1"] * (N - 3) + ["0", "99", "1.5"])
    reasons = {text: reason for _, text, reason in task(rotary, table, kind="masked").rejects.rows()}
    assert set(reasons) == set(table["sequence"][-3:])
    assert all("they count from 1 to" in reason for reason in reasons.values())


@pytest.fixture
def peptides(rotary):
    """The letters of some residues are atoms too, so the tiny subject reads peptides."""
    first = [f"{text[0]}1{'S' if text[0] != 'S' else 'N'}" for text in PEPTIDES]
    third = [f"{f}:{text[2]}3{'I' if text[2] != 'I' else 'C'}" for f, text in zip(first, PEPTIDES, strict=True)]
    table = pl.DataFrame({
        "index": range(8), "name": None, "sequence": PEPTIDES, "mine": [str(i) for i in range(8)],
        "effect": [str(0.5 * i) for i in range(8)], "changes": first[:4] + third[4:],
    })  # fmt: skip

    def made(table=table, **given):
        usual = {"label": "effect", "kind": "mutation", "split": None, "group": "mine", "mutations": "changes"}
        return table, prepare(rotary, PROTEIN, table, seed=0, **usual | given)

    return made


def test_mutations_are_masked_and_swapped(rotary, peptides):
    table, data = peptides()
    for example in (e for part in PARTS for e in data.parts[part]):
        changes = table["changes"][example.index].split(":")
        own = rotary.tokenize([example.text]).ids[0]
        assert example.y == 0.5 * example.index
        assert example.places == tuple(int(c[1:-1]) for c in changes)
        assert example.swaps == tuple((int(c[1:-1]), rotary.token_id(c[0]), rotary.token_id(c[-1])) for c in changes)
        assert [own[p] for p in example.places] == [rotary.token_id(c[0]) for c in changes]
        assert all(example.ids[p] == rotary.mask_id for p in example.places)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("I1S", "does not fit: C stands there"),
        ("C9S", "none of this sequence"),
        ("C0S", "none of this sequence"),
        ("c1s", "none of this sequence"),
        ("", "names no mutation"),
        ("NA", "names no mutation"),
        (None, "names no mutation"),
        ("C1S:C1A", "change residue 1 twice: one residue cannot become two"),
        ("C1Z", "no token of"),
    ],
)
def test_mutations_that_do_not_fit_are_rejected(peptides, cell, reason):
    table, _ = peptides()
    table = table.with_columns(changes=pl.Series([cell, *table["changes"][1:]]))
    _, data = peptides(table)
    ((index, text, found),) = data.rejects.rows()
    assert (index, text) == (0, PEPTIDES[0])
    assert reason in found


def test_rows_that_cannot_be_used(rotary):
    texts = [text for text, _ in molecules()]
    labels = ["0.5", "", None, "x", "nan", "inf"] + [str(i / 7) for i in range(N - 6)]
    table = rows(labels).with_columns(sequence=pl.Series([*texts[:6], "C1CC", "C?C", *texts[8:]]))
    earlier = rejects_frame([(N + 1, "", "the sequence is empty")])
    data = task(rotary, table, kind="regression", rejects=earlier)
    reasons = dict(data.rejects.select("index", "reason").rows())
    assert set(reasons) == {1, 2, 3, 4, 5, 6, 7, N + 1}
    for index, said in ((1, "no label"), (2, "no label"), (3, "'x' is no number"), (4, "no label"),
                        (5, "not finite"), (6, "ring closure 1"), (7, "no SMILES")):  # fmt: skip
        assert said in reasons[index] or (index == 7 and "not know" in reasons[index])
    assert sum(len(data.parts[part]) for part in PARTS) == N - 7


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"label": "wrong"}, "no column 'wrong' for --label: give one of label"),
        ({"split": "wrong"}, "no column 'wrong' for --split"),
        ({"group": "wrong"}, "no column 'wrong' for --group"),
        ({"mutations": "wrong", "kind": "mutation"}, "no column 'wrong' for --mutations"),
        ({"kind": "nonsense"}, "no kind of task 'nonsense'"),
        ({"kind": "mutation"}, "go together"),
        ({"mutations": "label"}, "go together"),
    ],
)
def test_options_that_do_not_fit(rotary, given, says):
    with pytest.raises(InputError, match=says):
        task(rotary, **given)


def test_tables_that_make_no_task(rotary):
    own = {"mine": [str(i) for i in range(N)]}
    for label in ("1", "0.5"):
        with pytest.raises(InputError, match=r"one label only \((1|0.5)\)"):
            task(rotary, rows([label] * N))
    with pytest.raises(InputError, match=r"one label only \(0\)"):
        task(rotary, rows(["1"] + ["0"] * (N - 1), **own), group="mine")
    with pytest.raises(InputError, match="has no example of class 'c'"):
        task(rotary, rows(["c"] + ["a", "b"] * (N // 2 - 1) + ["a"], **own), group="mine")
    with pytest.raises(InputError, match="3 parts need 3 groups, and the sequences form 2"):
        task(rotary, rows(mine=["a", "b"] * (N // 2)), group="mine")
    with pytest.raises(InputError, match="the part 'report' of the split is empty"):
        task(rotary, named(["train"]), split="part", group="mine")
    with pytest.raises(InputError, match="names the part 'holdout'"):
        task(rotary, named(["train", "test", "holdout"]), split="part", group="mine")
    with pytest.raises(InputError, match=r"groups of relatives stand in two parts of column 'part', such as"):
        task(rotary, named(["train", "test"]), split="part")
    with pytest.raises(InputError, match=r"no row can be used; first reason: it has no label"):
        task(rotary, rows([None] * N))


def test_targets_that_the_subject_cannot_give(folders, tmp_path):
    from transformers import BertModel

    BertModel(tiny.tiny_model("bert").config).save_pretrained(tmp_path / "bert")
    tiny.tokenizer().save_pretrained(tmp_path / "bert")
    with pytest.raises(SubjectError, match="no language-model head"):
        task(tiny.load_tiny(tmp_path / "bert"), rows(["1"] * N), kind="masked")
    causal = tiny.load_tiny(folders["gpt2"])
    data = task(causal, rows(["2"] * N), kind="masked")
    assert all(torch.equal(torch.from_numpy(e.ids), causal.tokenize([e.text]).ids[0]) for e in data.parts["fit"])


@pytest.mark.parametrize(
    ("kind", "label", "metric"),
    [("class", None, "spearman"), ("regression", [str(i / 3) for i in range(N)], "auroc"),
     ("masked", ["1"] * N, "auroc"), ("class", ["a", "b", "c"] * (N // 3), "auroc")],
)  # fmt: skip
def test_a_metric_that_does_not_suit_the_kind(rotary, kind, label, metric):
    data = task(rotary, rows(label, mine=[str(i) for i in range(N)]), kind=kind, group="mine")
    with pytest.raises(InputError, match=f"--metric {metric} does not suit a {kind} task"):
        fit_readout(rotary, data, metric, 0)


def test_a_column_of_texts_is_no_column_of_classes():
    """As where the sequences themselves are named: every row would be a class."""
    texts = [f"C{'C' * i}O" for i in range(60)]
    with pytest.raises(InputError, match=r"'smiles' holds 60 different texts in 60 rows, such as 'CO'"):
        kind_of(texts, [3] * 60, label="smiles")
    assert kind_of([f"family {i % 25}" for i in range(60)], [3] * 60, label="family") == "class"
