"""`isotrace circuit` as a user meets it, on a tiny subject and molecules with a planted motif."""

import json
import sys

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score

import tiny
from isotrace.cli import main
from isotrace.dictionaries.saving import reference, save_dictionary

QUICK = ("--sizes", "2,72", "--controls", "2", "--bootstrap", "20", "--drawn", "1", "--domain", "molecule")


def molecules(n):
    """(SMILES, 1 with a bromine, 0 with a chlorine), the motif that decides the label."""
    rng, found = np.random.default_rng(0), {}
    while len(found) < n:
        ends = ["".join(rng.choice(["C", "O", "N"], rng.integers(1, 5))) for _ in range(2)]
        marked = len(found) % 2
        found.setdefault(f"{ends[0]}C({('Cl', 'Br')[marked]}){rng.choice(['C', 'C1CCC1'])}C{ends[1]}", marked)
    return list(found.items())


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of a subject, of its body without the head, of another, a dictionary of each, and tables."""
    from transformers import BertModel

    root, pairs = tmp_path_factory.mktemp("circuit"), molecules(72)
    model = tiny.fit(tiny.tiny_model("bert", hidden_act="relu").eval(), [text for text, _ in pairs], steps=160)
    tiny.save_subject(model, root / "subject")
    body = BertModel(model.config)
    body.load_state_dict(model.bert.state_dict(), strict=False)
    body.save_pretrained(root / "body")
    tiny.tokenizer().save_pretrained(root / "body")
    tiny.save_subject(tiny.tiny_model("esm-rotary"), root / "other")
    for name in ("subject", "body", "other"):
        subject = tiny.load_tiny(root / name)
        dictionary = (
            tiny.random_dictionary(subject, n_features=24) if name == "other" else tiny.exact_dictionary(subject)
        )
        save_dictionary(dictionary, root / f"{name}-dict", reference(subject), dtype=torch.float32, training={})
    n = range(len(pairs))
    pl.DataFrame({
        "smiles": [text for text, _ in pairs],
        "bromine": [marked for _, marked in pairs],
        "one": [1 for _ in n],
        "half": [marked / 2 for _, marked in pairs],
        "place": [pairs[i][0].index("(") + i % 4 // 2 for i in n],  # the branching carbon, or the halogen on it
        "leaking": ["train" if i % 2 else "test" for i in n],
        "parts": [("train", "valid", "test")[i % 3] for i in n],
        "own": [f"g{i}" for i in n],
        "two": [f"g{i % 2}" for i in n],
        "words": ["high" if i == 5 else f"{len(pairs[i][0]) + 0.5}" for i in n],
        "holes": ["nan" if i == 5 else "" if i == 6 else f"{len(pairs[i][0]) + 0.5}" for i in n],
        "text": ["unknown" for _ in n],
    }).write_csv(root / "data.csv")  # fmt: skip
    (root / "bad.csv").write_text("smiles,bromine\nC1CC,1\nC?C,0\n")
    return root


@pytest.fixture
def isotrace(world, capsys, monkeypatch, tmp_path):
    """Run `isotrace circuit` in this process: (exit code, stdout, stderr). Options given replace the usual ones."""

    def run(*options, subject="subject", dictionary=None, data="data.csv", out=tmp_path / "run"):
        given = ("circuit", world / subject, world / f"{dictionary or subject}-dict", "--data", world / data)
        arguments = [*given, "--out", out, *QUICK, *options]
        monkeypatch.setattr(sys, "argv", ["isotrace", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
            sys.exit(0)
        printed = capsys.readouterr()
        return stopped.value.code or 0, printed.out, printed.err

    return run


def test_the_json_that_stays(isotrace, tmp_path):
    given = ("--label", "bromine", "--group", "own", "--json")
    code, out, _ = isotrace(*given)
    assert code == 0
    found = json.loads(out)
    assert {"name", "subject", "chance"} <= set(found["task_metric"])
    assert found["task_metric"]["name"] == "auroc"
    assert [entry["n"] for entry in found["sweep"]] == [2, 72]
    for entry in found["sweep"]:
        assert {"n", "fraction", "free_running", "teacher_forced", "random", "neurons"} <= set(entry)
        assert {"sufficiency", "ci"} <= set(entry["free_running"]) & set(entry["teacher_forced"]) & set(
            entry["neurons"]
        )
        assert {"mean", "ci"} <= set(entry["random"])
    assert found["sweep"][-1]["free_running"]["sufficiency"] == pytest.approx(1)
    assert set(found["chosen"]) == set(found["choice"]["features"]) == {"79", "90"}
    assert {"fall", "ci", "random", "neurons"} <= set(found["necessity"])
    assert found["rejects"] == []
    run = tmp_path / "run"
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    files = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == files - {"manifest.json"}
    stored = json.loads((run / "circuit.json").read_text())
    assert {key: found[key] for key in stored} == stored
    assert pl.read_parquet(run / "sweep.parquet")["n"].to_list() == [2, 72]
    assert pl.read_parquet(run / "parts.parquet").height == found["necessity"]["n"]
    said = pl.read_parquet(run / "predictions.parquet")
    assert {"own", "words", "part", "group", "predicted", "p_0", "p_1"} <= set(said.columns)  # her own columns first
    assert said["index"].to_list() == list(range(said.height))
    report = said.filter(part="report")
    found_auroc = roc_auc_score(report["bromine"].cast(int), report["p_1"])
    assert found_auroc == pytest.approx(found["task_metric"]["subject"], abs=1e-6)
    assert "</html>" in (run / "report.html").read_text()
    assert isotrace(*given)[1] == out, "the same command gives the same numbers, from what it stored"
    assert isotrace(*given, out=tmp_path / "elsewhere")[1] == out, "and from nothing"


def test_the_table_in_the_terminal(isotrace, tmp_path):
    code, out, _ = isotrace("--label", "words", "--task", "regression", "--group", "own", "--split", "parts")
    assert code == 0
    assert "words: spearman" in out
    assert "report.html" in out
    assert "rejected row 5" in out
    assert "'high' is no number" in out
    assert pl.read_parquet(tmp_path / "run" / "rejects.parquet")["index"].to_list() == [5]


def test_labels_that_are_missing_or_no_number_reject_the_row(isotrace):
    code, out, _ = isotrace("--label", "holes", "--task", "regression", "--group", "own", "--json")
    assert code == 0
    found = json.loads(out)
    assert [(r["index"], r["reason"]) for r in found["rejects"]] == [
        (5, "it has no label in column 'holes', 'nan' stands for none"),
        (6, "it has no label in column 'holes'"),
    ]
    assert found["task"]["n_rejected"] == 2


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--label", "one", "--group", "own"), 2, "one label only (1): a task needs two classes or more"),
        (("--label", "bromine", "--split", "leaking"), 2, "groups of relatives stand in two parts of column 'leaking'"),
        (("--label", "bromine", "--group", "two"), 2, "3 parts need 3 groups, and the sequences form 2"),
        (("--label", "bromine", "--group", "own", "--sizes", "2,73"), 2, "73 features was asked for, and there are 72"),
        (("--label", "bromine", "--sizes", "many"), 2, "--sizes 'many': give whole numbers"),
        (("--label", "bromine", "--task", "mutation"), 2, "--task mutation and --mutations COLUMN go together"),
        (("--label", "half", "--mutations", "text"), 2, "--task mutation and --mutations COLUMN go together"),
        (("--label", "bromine", "--task", "poem"), 2, "no kind of task 'poem'"),
        (("--label", "nowhere"), 2, "no column 'nowhere' for --label: give one of"),
        (("--label", "bromine", "--split", "nowhere"), 2, "no column 'nowhere' for --split"),
        (("--label", "bromine", "--split", "own"), 2, "names the part 'g0': use train, valid and test"),
        (("--label", "bromine", "--column", "nowhere"), 2, "nowhere"),
        (
            ("--label", "bromine", "--group", "own", "--metric", "spearman"),
            2,
            "--metric spearman does not suit a class",
        ),
        pytest.param(
            ("--label", "bromine", "--group", "own", "--ranking", "magic"),
            2,
            "no ranking 'magic'",
        ),
        (("--label", "bromine", "--mediator", "poem"), 2, "no mediator 'poem'"),
        (("--label", "bromine", "--domain", "poem"), 2, "no domain 'poem'"),
    ],
)
def test_what_cannot_be_done_is_one_line(isotrace, tmp_path, options, code, says):
    found, out, err = isotrace(*options, "--json")
    assert found == code
    assert out == ""
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert says in last
    assert "Traceback" not in err
    if (tmp_path / "run" / "manifest.json").is_file():
        assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "failed"


@pytest.mark.parametrize(
    ("given", "options", "code", "says"),
    [
        ({"data": "bad.csv"}, ("--label", "bromine"), 2, "no row can be used; first reason: "),
        ({"data": "nowhere.csv"}, ("--label", "bromine"), 2, "nowhere.csv does not exist"),
        ({"subject": "body"}, ("--label", "place", "--task", "masked"), 3, "has no language-model head"),
        ({"dictionary": "other"}, ("--label", "bromine"), 4, "was trained on"),
    ],
)
def test_what_does_not_belong_together(isotrace, given, options, code, says):
    found, out, err = isotrace(*options, "--json", **given)
    assert found == code
    assert out == ""
    assert err.strip().splitlines()[-1].startswith("error: ")
    assert says in err


def test_a_folder_in_the_way(isotrace, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = isotrace("--label", "bromine", "--group", "own", out=tmp_path / "file" / "run")
    assert code == 5
    assert err.strip().splitlines()[-1].startswith("error: ")


def test_a_probe_serves_where_there_is_no_head(isotrace):
    code, out, _ = isotrace("--label", "bromine", "--group", "own", "--json", subject="body")
    assert code == 0
    assert json.loads(out)["task_metric"]["subject"] > 0.5


def test_a_masked_task(isotrace):
    code, out, err = isotrace("--label", "place", "--task", "masked", "--group", "own", "--json")
    assert code == 0, err
    assert json.loads(out)["task_metric"]["name"] == "accuracy"
