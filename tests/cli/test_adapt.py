"""isotrace adapt: the folder it leaves is a subject that other commands open, and a killed one goes on."""

import json

import polars as pl
import pytest

import isotrace
import tiny
from isotrace.base.errors import InputError
from isotrace.transfer.adapting import training
from isotrace.transfer.adapting.methods import probe, probe_all
from shell import said

FEW = ["--column", "sequence", "--domain", "molecule", "--steps", 6, "--every", 2, "--bootstrap", 40]


@pytest.fixture(autouse=True)
def _few_strengths(monkeypatch):
    """Three in place of thirteen."""
    monkeypatch.setattr(probe, "STRENGTHS", {task: found[2::4] for task, found in probe.STRENGTHS.items()})
    monkeypatch.setattr(probe_all, "PENALTIES", probe_all.PENALTIES[4::3])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Numbers and yes or no of 60 molecules; one label has a unit, one molecule cannot be read."""
    texts = [
        a + b + c for a in ("C", "N", "OC", "CCC") for b in ("CC", "CN", "CO", "CCl", "CF") for c in ("C", "N", "O")
    ]
    numbers = [f"{text.count('N') + 0.25 * len(text):.2f}" for text in texts]
    numbers[5], texts[7] = "5 nM", "C1CC"
    frame = pl.DataFrame({
        "sequence": texts, "activity": numbers, "nitrogen": ["yes" if "N" in text else "no" for text in texts],
        "batch": [str(i % 9) for i in range(len(texts))],
    })  # fmt: skip
    path = tmp_path_factory.mktemp("adapt") / "data.csv"
    frame.write_csv(path)
    return path


def test_what_comes_out_is_opened_by_others(folders, data, tmp_path):
    out = tmp_path / "adapted"
    asked = ["adapt", folders["esm-rotary"], "--data", data, "--label", "activity", "--label", "nitrogen", "--group",
             "batch", *FEW, "--seeds", 2, "--out", out]  # fmt: skip
    text = said(*asked, "--method", "full")
    assert "3 held out" in text
    assert "--target probe:activity" in text
    assert "5 nM" in text
    found = isotrace.load(out)
    methods = [row["method"] for row in found.summary["table"] if row["label"] == "nitrogen"]
    assert methods == ["full", "scratch", "probe", "untrained", "forest"]
    assert found.summary["n_rejected"] >= 2
    subject = isotrace.load_subject(out)
    before = isotrace.load_subject(folders["esm-rotary"], domain="molecule")
    assert (subject.files.domain, subject.n_layers) == ("molecule", before.n_layers)
    assert subject.files.weights_sha256 != before.files.weights_sha256
    traced = isotrace.trace(subject, tiny.random_dictionary(subject), "CCNC", "probe:activity", nodes=4, controls=4)
    row = found.tables["predictions"].filter(pl.col("sequence") == "CCNC")
    assert traced.summary["target"]["value"] == pytest.approx(row["activity: predicted"].item(), abs=1e-4)
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 2
    assert "random forest on fingerprints" in page
    assert {*found.tables["curves"]["seed"]} == {0, 1}
    assert len(repr(found)) <= 1_000


def test_the_subject_of_a_probe_keeps_its_dictionaries(folders, data, tmp_path):
    out = tmp_path / "probed"
    asked = ["adapt", folders["esm-rotary"], "--data", data, "--label", "nitrogen", "--group", "batch", *FEW]
    summary = json.loads(said(*asked, "--method", "probe_all", "--no-baselines", "--out", out, "--json"))
    assert [row["method"] for row in summary["table"]] == ["probe_all"]
    before = isotrace.load_subject(folders["esm-rotary"], domain="molecule")
    assert isotrace.load_subject(out).files.weights_sha256 == before.files.weights_sha256
    traced = isotrace.trace(out, tiny.random_dictionary(before), "CCNC", "probe:nitrogen", nodes=4, controls=4)
    assert traced.summary["target"]["unit"] == "log-odds"


@pytest.mark.parametrize("where", ["lora-0", pytest.param("reading", marks=pytest.mark.nightly)])
def test_a_killed_command_goes_on_to_the_same_weights(folders, data, tmp_path, monkeypatch, where):
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)
    how = {"label": "activity", "group": "batch", "domain": "molecule", "column": "sequence", "steps": 6, "every": 2,
           "method": "lora", "baselines": False, "bootstrap": 20}  # fmt: skip

    def killed(items, label):
        for i, item in enumerate(items):
            if label.startswith(where) and i == 5:
                raise KeyboardInterrupt
            yield item

    whole = isotrace.adapt(folders["bert"], data, out=tmp_path / "whole", **how)
    with pytest.raises(KeyboardInterrupt):
        isotrace.adapt(folders["bert"], data, out=tmp_path / "killed", progress=killed, **how)
    again = isotrace.adapt(folders["bert"], data, out=tmp_path / "killed", **how)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert again.tables["predictions"].equals(whole.tables["predictions"])
    assert not (tmp_path / "killed" / ".work").exists()


def test_what_cannot_be_asked_is_told_before_anything_is_loaded(folders, data, monkeypatch):
    monkeypatch.setattr("isotrace.verbs.loading.load_subject", lambda *_, **__: pytest.fail("loaded"))
    ask = ["adapt", folders["bert"], "--data", data, "--label"]
    with pytest.raises(InputError, match="no adaptation method 'magic': give one of probe, probe_all, lora"):
        said(*ask, "activity", "--method", "magic")
    with pytest.raises(InputError, match="logS"):
        said(*ask, "logS")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs peft: pip install 'isotrace\[peft\]'"):
        said(*ask, "activity", "--method", "lora")
