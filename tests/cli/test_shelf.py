"""From `annotate` and `evaluate` to `trace` and `circuit` of a user's own dictionary, and never of another."""

import json
import shutil
import sys

import polars as pl
import pytest
import torch

import isotrace as api
import tiny
from isotrace.base.errors import DictionaryError, InputError
from isotrace.base.identity import identity
from isotrace.base.result import Result
from isotrace.base.runs import dumps
from isotrace.cli import app
from isotrace.dictionaries.hub import save_pretrained
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary
from isotrace.dictionaries.shelf import shelf_of
from isotrace.verbs.tracing import Tracer

TEXTS = [
    f"{'C' * a}{link}{'C' * b}{end}" for a in range(1, 5) for b in range(1, 5) for link in "ON" for end in ("", "O")
]
FEW = ("--max-features", 20, "--controls", 2, "--spellings", 0)


def renumbered(dictionary):
    """The same function; every feature has another number."""
    order = torch.arange(dictionary.config.n_features).roll(1)
    for layer in range(dictionary.config.n_layers):
        dictionary.W_enc[layer].data = dictionary.W_enc[layer][:, order]
        dictionary.b_enc[layer].data = dictionary.b_enc[layer][order]
        dictionary.W_dec[layer].data = dictionary.W_dec[layer][order]
        for table in (dictionary.mean_activation, dictionary.density):
            table[layer] = table[layer][order]
    return dictionary


@pytest.fixture(scope="module")
def isotrace():
    """Run the command line in this process; what it raises goes through."""

    def run(*arguments):
        words = list(map(str, arguments))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["isotrace", *words])
            app(words, standalone_mode=False)

    return run


@pytest.fixture(scope="module")
def world(tmp_path_factory, isotrace):
    """A subject, a dictionary without a shelf, the same one renumbered, and runs of annotate and evaluate."""
    root = tmp_path_factory.mktemp("shelf")
    subject = tiny.load_tiny(tiny.save_subject(tiny.fit(tiny.tiny_model("esm-rotary"), TEXTS, 20), root / "subject"))
    made = tiny.random_dictionary(subject)
    other = renumbered(tiny.random_dictionary(subject))
    assert other.fingerprint() == pytest.approx(made.fingerprint(), rel=1e-4)
    for name, dictionary in (("own", made), ("other", other)):
        save_dictionary(dictionary, root / name, reference(subject), dtype=torch.float32, training={})
    rows = [f"{text},{'yes' if 'N' in text else 'no'},{i}" for i, text in enumerate(TEXTS)]
    (root / "data.csv").write_text("\n".join(["smiles,amine,own", *rows]) + "\n")
    both = (root / "subject", root / "own", "--data", root / "data.csv", "--domain", "molecule")
    isotrace("annotate", *both, "--out", root / "names", "--sources", "dictionary", "--permutations", 20, "--bootstrap",
             20, "--spellings", 0, "--no-effects", "--min-positive", 5)  # fmt: skip
    isotrace("evaluate", *both, root / "other", "--out", root / "fidelity", "--bootstrap", 20, "--no-controls")
    return root


def traced(isotrace, world, out, *options, dictionary="own"):
    isotrace("trace", world / "subject", world / dictionary, "CCOCC", "--target", "mask:2", "--domain", "molecule",
             "--out", out, *FEW, *options)  # fmt: skip
    return json.loads((out / "trace.json").read_text()), (out / "report.html").read_text()


def labels(summary):
    return {(feature["layer"], feature["feature"]): feature["label"] for feature in summary["features"]}


def test_annotations_from_python_are_those_of_the_command(world):
    quick = {"sources": "dictionary", "permutations": 20, "bootstrap": 20, "spellings": 0, "effects": False}
    table = pl.read_csv(world / "data.csv")
    given = (world / "subject", world / "own", table)
    found = api.annotate(*given, domain="molecule", min_positive=5, **quick)
    alike = [result.summary | {"seconds": None} for result in (found, Result.load(world / "names"))]
    assert json.loads(dumps(alike[0])) == alike[1]
    assert all(table.equals(found.tables[name]) for name, table in Result.load(world / "names").tables.items())
    with pytest.raises(InputError, match="--attach and --explain need a run folder"):
        api.annotate(*given, attach=True)


def test_without_a_shelf_nothing_is_known(isotrace, world, tmp_path):
    summary, _ = traced(isotrace, world, tmp_path / "run")
    assert set(labels(summary).values()) == {"not annotated"}
    assert summary["fidelity"]["free_running"] is None
    assert any("fidelity" in warning for warning in summary["warnings"])


@pytest.mark.parametrize("way", ["given", "attached"])
def test_names_and_fidelity_reach_a_trace(isotrace, world, tmp_path, way):
    options = ("--names", world / "names", "--fidelity", world / "fidelity")
    dictionary = "own"
    if way == "attached":
        dictionary, options = f"own-{tmp_path.name}", ()
        shutil.copytree(world / "own", world / dictionary)
        both = (world / "subject", world / dictionary, "--data", world / "data.csv", "--domain", "molecule", "--attach")
        isotrace("annotate", *both, "--out", tmp_path / "names", "--sources", "dictionary", "--permutations", 20,
                 "--bootstrap", 20, "--spellings", 0, "--no-effects", "--min-positive", 5)  # fmt: skip
        isotrace("evaluate", *both, "--out", tmp_path / "fidelity", "--bootstrap", 20, "--no-controls")
    summary, page = traced(isotrace, world, tmp_path / "run", *options, dictionary=dictionary)
    found = pl.read_parquet(world / "names" / "features.parquet")
    known = {(row["layer"], row["feature"]): row["label"] for row in found.to_dicts()}
    assert labels(summary)
    assert labels(summary) == {key: known[key] for key in labels(summary)}
    measured = json.loads((world / "fidelity" / "evaluation.json").read_text())["dictionaries"][0]
    for key in ("free_running", "teacher_forced", "l0"):
        assert summary["fidelity"][key] == measured[key]
    assert not any("fidelity" in warning for warning in summary["warnings"])
    shown = {text for text in TEXTS if f'"{text}"' in page}
    assert shown  # examples of the features, drawn from their text


def test_those_of_another_dictionary_are_refused(isotrace, world, tmp_path):
    evaluated = tmp_path / "evaluated"
    both = (world / "subject", world / "own", "--data", world / "data.csv", "--domain", "molecule")
    isotrace("evaluate", *both, "--out", evaluated, "--bootstrap", 20, "--no-controls")
    for option, run in (("--names", world / "names"), ("--fidelity", evaluated)):
        with pytest.raises(DictionaryError, match="of another dictionary"):
            traced(isotrace, world, tmp_path / "run", option, run, dictionary="other")
    for option, run in (("--names", world / "fidelity"), ("--fidelity", world / "names")):
        with pytest.raises(DictionaryError, match="holds no run of isotrace"):
            traced(isotrace, world, tmp_path / "run", option, run)
    moved = tmp_path / "moved"
    shutil.copytree(world / "other", moved)
    shutil.copytree(attached(world, tmp_path) / "about", moved / "about")
    with pytest.raises(DictionaryError, match="about another dictionary"):
        Tracer(str(world / "subject"), moved, domain="molecule")
    assert not (tmp_path / "run").exists()


def test_of_an_evaluation_of_several_each_finds_its_own(world):
    entries = json.loads((world / "fidelity" / "evaluation.json").read_text())["dictionaries"]
    for name, entry in zip(("own", "other"), entries, strict=True):
        dictionary = load_dictionary(world / name)
        found = shelf_of(dictionary, fidelity=world / "fidelity").fidelity
        assert found["dictionary_id"] == entry["dictionary_id"] == identity(dictionary)


def test_examples_are_those_on_which_a_feature_fires(world):
    examples = shelf_of(load_dictionary(world / "own"), names=world / "names").tables.examples
    assert examples["positions"].list.len().min() > 0
    rows = pl.read_parquet(world / "names" / "examples.parquet").filter(pl.col("positions").list.len() > 0)
    texts = dict(pl.read_parquet(world / "names" / "sequences.parquet", columns=["index", "sequence"]).iter_rows())
    expected = {(r["layer"], r["feature"], texts[r["index"]], tuple(r["positions"])) for r in rows.to_dicts()}
    assert expected == {(r["layer"], r["feature"], r["sequence"], tuple(r["positions"])) for r in examples.to_dicts()}


def attached(world, folder):
    """A copy of the dictionary with its names on its shelf."""
    from isotrace.dictionaries.shelf import attach

    shutil.copytree(world / "own", folder / "own")
    attach("names", folder / "own", load_dictionary(folder / "own"), world / "names")
    return folder / "own"


def test_names_reach_a_circuit(isotrace, world, tmp_path):
    both = (world / "subject", world / "own", "--data", world / "data.csv", "--domain", "molecule", "--label", "amine",
            "--group", "own")  # fmt: skip
    isotrace("circuit", *both, "--out", tmp_path / "run", "--sizes", "2,36", "--controls", 2, "--bootstrap", 20,
             "--drawn", 0, "--names", world / "names")  # fmt: skip
    parts = pl.read_parquet(tmp_path / "run" / "parts.parquet")
    known = pl.read_parquet(world / "names" / "features.parquet").select("layer", "feature", named="label")
    joined = parts.join(known, on=["layer", "feature"], how="left")
    assert joined["label"].to_list() == joined["named"].to_list()
    assert "not annotated" not in joined["label"].to_list()


def test_the_shelf_travels_with_its_dictionary_and_not_with_a_changed_one(world, tmp_path):
    own = load_dictionary(attached(world, tmp_path))
    record = reference(tiny.load_tiny(world / "subject"))
    save_pretrained(own, tmp_path / "copy", record, dtype=torch.float32, training={})
    copy = load_dictionary(tmp_path / "copy")
    assert identity(copy) == identity(own)
    assert shelf_of(copy).tables.features.equals(shelf_of(own).tables.features)
    assert {"sequence", "positions", "values"} < set(shelf_of(copy).tables.examples.columns)
    save_pretrained(own, tmp_path / "rounded", record, dtype=torch.bfloat16, training={})
    assert not (tmp_path / "rounded" / "about").exists()
    own.W_dec[0].data[0].neg_()
    with pytest.raises(DictionaryError, match="about another dictionary"):
        shelf_of(own)
    save_pretrained(own, tmp_path / "changed", record, dtype=torch.float32, training={})
    assert shelf_of(load_dictionary(tmp_path / "changed")).tables.features.is_empty()


@pytest.mark.parametrize("damage", ["json", "format", "parquet"])
def test_a_damaged_shelf_says_so(world, tmp_path, damage):
    folder = attached(world, tmp_path)
    place = folder / "about" / "names"
    text = (place / "names.json").read_text()
    if damage == "json":
        (place / "names.json").write_text(text[:-9])
    if damage == "format":
        (place / "names.json").write_text(text.replace('"format_version": 1', '"format_version": 9'))
    if damage == "parquet":
        (place / "examples.parquet").write_bytes(b"PAR1")
    with pytest.raises(DictionaryError, match="attach it again"):
        shelf_of(load_dictionary(folder))
