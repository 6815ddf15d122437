"""`isotrace evaluate` as a user meets it, on tiny subjects."""

import json
import re
import sys

import polars as pl
import pytest
import torch
import typer

import tiny
from isotrace.base.errors import DictionaryError, InputError, SubjectError
from isotrace.cli import evaluate
from isotrace.dictionaries.build import build, configure
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary
from isotrace.evaluation.fidelity import evaluate as evaluate_in_python

KEYS = {
    "name",
    "architecture",
    "activation",
    "k",
    "window",
    "n_features",
    "free_running",
    "teacher_forced",
    "fve",
    "l0",
}
KEYS |= {"dead_fraction", "density", "decoder_norms", "ablated", "paired"}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A saved subject, two dictionaries of it, and a file of sequences with two bad rows."""
    root = tmp_path_factory.mktemp("world")
    model = tiny.fit(tiny.tiny_model("bert").eval(), tiny.MOLECULES, steps=40)
    subject = tiny.load_tiny(tiny.save_subject(model, root / "bert"))
    first = tiny.random_dictionary(subject, window=2)
    sites = {"hookpoint_in": "layers.{}.resid_post", "hookpoint_out": "layers.{}.resid_post"}
    second = build(configure(subject, "sae", n_features=20, k=6, **sites), seed=0)
    for name, dictionary in (("clt", first), ("sae", second)):
        save_dictionary(dictionary, root / name, reference(subject), dtype=torch.float32, training={})
    rows = ["smiles,label", *(f"{s},1" for s in tiny.MOLECULES * 2), "C1CC,1", "C?C,1", ",1"]
    (root / "data.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def isotrace(capsys, monkeypatch):
    """Run the command in this process; what it raises goes through."""
    app = typer.Typer()
    app.command()(evaluate.command)

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["isotrace", "evaluate", *map(str, arguments)])
        app(list(map(str, arguments)), standalone_mode=False)
        return capsys.readouterr()

    return run


def usual(world, *names):
    paths = [world / "bert", *(world / name for name in names)]
    return (*paths, "--data", world / "data.csv", "--domain", "molecule", "--bootstrap", 40, "--mask-rate", 0.3)


def test_json_holds_what_the_docs_promise(isotrace, world):
    printed = isotrace(*usual(world, "clt", "sae"), "--json")
    found = json.loads(printed.out)
    assert {"subject", "n_sequences", "n_tokens", "clean", "rejects", "dictionaries", "controls", "pareto"} <= set(
        found
    )
    assert [one["name"] for one in found["dictionaries"]] == [str(world / "clt"), str(world / "sae")]
    for one in found["dictionaries"]:
        assert set(one) >= KEYS
        for mode in ("free_running", "teacher_forced"):
            assert {"loss_recovered", "ci", "top1_agreement", "kl"} <= set(one[mode])
        assert len(one["fve"]) == tiny.N_LAYERS
    assert [one["name"] for one in found["controls"]] == ["random", "pca", "neurons", "shuffled"]
    assert all(set(one) >= KEYS for one in found["controls"])
    assert [row["index"] for row in found["rejects"]] == [20, 21, 22]
    assert "ring closure 1" in found["rejects"][0]["reason"]
    assert found["n_sequences"] + found["fitting"]["n_sequences"] == 20
    assert isotrace(*usual(world, "clt", "sae"), "--json").out == printed.out


def test_without_controls_every_row_is_evaluated_as_in_python(isotrace, world):
    found = json.loads(isotrace(*usual(world, "clt"), "--json", "--no-controls", "--seed", 3).out)
    subject = tiny.load_tiny(world / "bert")
    options = {"mask_rate": 0.3, "seed": 3, "n_bootstrap": 40}
    alone = evaluate_in_python(subject, load_dictionary(world / "clt", subject), tiny.MOLECULES * 2, **options)
    alone = json.loads(json.dumps(alone))
    assert found["n_sequences"] == 20
    assert found["controls"] == []
    assert found["fitting"] is None
    assert found["clean"] == alone["clean"]
    assert found["dictionaries"][0]["free_running"] == alone["free_running"]


def test_limit_takes_the_first_usable_rows(isotrace, world):
    found = json.loads(isotrace(*usual(world, "clt"), "--json", "--no-controls", "--limit", 7).out)
    assert found["n_sequences"] == 7
    assert [row["index"] for row in found["rejects"]] == [22], "only what reading refuses: the rest was not needed"


def test_the_run_folder_holds_what_the_docs_promise(isotrace, world, tmp_path):
    out = tmp_path / "run"
    printed = isotrace(*usual(world, "sae", "clt"), "--out", out)
    assert "not applicable" in printed.out
    assert "rejected row 21" in printed.out
    names = {"fidelity.parquet", "rejects.parquet", "evaluation.json", "result.json", "pareto.svg", "report.html"}
    assert {path.name for path in out.iterdir()} == names | {"manifest.json"}
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert set(manifest["files"]) == names
    saved = json.loads((out / "evaluation.json").read_text())
    frame = pl.read_parquet(out / "fidelity.parquet")
    assert frame["name"].to_list() == [one["name"] for one in (*saved["dictionaries"], *saved["controls"])]
    assert frame["l0"][:2].to_list() == [one["l0"] for one in saved["dictionaries"]]
    assert frame.filter(pl.col("name") == "neurons")["l0"].item() is None
    assert pl.read_parquet(out / "rejects.parquet").height == 3
    page = (out / "report.html").read_text()
    assert (out / "pareto.svg").read_text().strip() in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert "C1CC" in page


def test_the_picture_labels_every_point(isotrace, world, tmp_path):
    isotrace(*usual(world, "clt"), "--out", tmp_path / "run")
    picture = (tmp_path / "run" / "pareto.svg").read_text()
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", picture)
    for label in ("clt", "random", "pca", "neurons", "shuffled"):
        assert sum(text.split(" ")[0] == label for text in texts) == 1
    assert "nan" not in picture
    assert "inf" not in picture


def test_a_dictionary_of_another_subject_stops_everything(isotrace, world, folders, tmp_path):
    with pytest.raises(DictionaryError, match="weights_sha256"):
        isotrace(folders["bert"], world / "clt", "--data", world / "data.csv", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_used_says_so(isotrace, world, tmp_path):
    bad = tmp_path / "bad.csv"
    bad.write_text("smiles\nC1CC\nC?C\n")
    subject, clt = world / "bert", world / "clt"
    with pytest.raises(InputError, match=r"no row of .*ring closure 1"):
        isotrace(subject, clt, "--data", bad, "--domain", "molecule")
    with pytest.raises(InputError, match=r"none\.csv does not exist"):
        isotrace(subject, clt, "--data", tmp_path / "none.csv")
    with pytest.raises(InputError, match="has no column"):
        isotrace(subject, clt, "--data", world / "data.csv", "--column", "sequence")
    with pytest.raises(InputError, match="given twice"):
        isotrace(subject, clt, clt, "--data", world / "data.csv")
    with pytest.raises(DictionaryError, match="no dictionary"):
        isotrace(subject, tmp_path, "--data", world / "data.csv")
    with pytest.raises(SubjectError, match="no subject"):
        isotrace(tmp_path, clt, "--data", world / "data.csv")
    single = tmp_path / "one.csv"
    single.write_text("smiles\nCCO\n")
    with pytest.raises(InputError, match="too few to fit controls"):
        isotrace(subject, clt, "--data", single)


def test_a_causal_subject_needs_no_masking_rate(isotrace, folders, tmp_path):
    """Next tokens, controls alike, in the table, in JSON and on the page; a run of before is still read."""
    subject = tiny.load_tiny(folders["gpt2"])
    save_dictionary(
        tiny.random_dictionary(subject), tmp_path / "d", reference(subject), dtype=torch.float32, training={}
    )
    (tmp_path / "many.smi").write_text("\n".join(tiny.MOLECULES * 2))
    given = (folders["gpt2"], tmp_path / "d", "--data", tmp_path / "many.smi", "--domain", "molecule")
    given = (*given, "--bootstrap", 20)
    found = json.loads(isotrace(*given, "--json").out)
    assert (found["objective"], found["mask_rate"], found["n_masked"]) == ("causal", 0, 0)
    assert found["n_predicted"] == found["n_tokens"] - found["n_sequences"] > 0
    assert [one["reason"] for one in found["controls"]] == [None] * 4
    assert f"{found['n_predicted']} next tokens" in isotrace(*given, "--out", tmp_path / "run").out
    page = (tmp_path / "run/report.html").read_text()
    assert "next-token loss" in page
    assert "mask" not in page.partition("</style>")[2]
    with pytest.raises(SubjectError, match="leave the masking rate out"):
        isotrace(*given, "--mask-rate", 0.2)
