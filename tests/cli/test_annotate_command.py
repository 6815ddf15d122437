"""`isotrace annotate` as a user meets it, on a tiny subject; docs/annotate.md lists what it writes."""

import json
import re
import sys
from pathlib import Path

import polars as pl
import pytest
import torch
import typer

import tiny
from isotrace.annotation.nulls.sources import untrained_subject
from isotrace.base.errors import DictionaryError, InputError, SubjectError
from isotrace.cli import annotate
from isotrace.dictionaries.saving import reference, save_dictionary
from isotrace.domains.molecule.domain import MOLECULE

ROOT = Path(__file__).parents[2]
PATTERNS = """name,group,kind,pattern
my oxygen,mine,smarts,[#8]
my ester,mine,smarts,C(=O)OC
nowhere,mine,smarts,[U]
any token,mine,regex,.+
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A saved subject, a dictionary of it and one of another subject, sequences with bad rows, concept files."""
    root = tmp_path_factory.mktemp("annotate")
    subjects = {}
    for name, model in (("esm", tiny.tiny_model("esm-rotary")), ("bert", tiny.tiny_model("bert"))):
        subjects[name] = tiny.load_tiny(tiny.save_subject(model, root / name))
        dictionary = tiny.random_dictionary(subjects[name], n_features=8, k=3, layers=(0, 2), window=1)
        save_dictionary(dictionary, root / f"{name}-dictionary", reference(subjects[name]), dtype=torch.float32,
                        training={})  # fmt: skip
    blank = untrained_subject(subjects["esm"], seed=0)
    other = tiny.random_dictionary(blank, n_features=8, k=3, layers=(0, 2), window=1, seed=1)
    save_dictionary(other, root / "untrained", reference(blank), dtype=torch.float32, training={})
    texts = [f"{'C' * a}{link}{'C' * b}{end}" for a in range(1, 5) for b in range(1, 5)
             for link in ("O", "N", "C(=O)O") for end in ("", "O", "c1ccccc1")]  # fmt: skip
    rows = [f"{text},{i % 2},{i},p{i % 9}" for i, text in enumerate(texts)]
    bad = ["C?C,0,1,p0", "C1CC,1,2,p1", "CCS,1,nan,p2"]
    (root / "data.csv").write_text("\n".join(["smiles,even,rank,plate", *rows, *bad]) + "\n")
    (root / "mine.csv").write_text(PATTERNS)
    labels = [f"{text},{'yes' if 'N' in text else 'no'},always" for text in texts]
    (root / "labels.csv").write_text("\n".join(["smiles,class:amine,class:same", *labels]) + "\n")
    return root


@pytest.fixture
def isotrace(capsys, monkeypatch):
    """Run the command in this process; what it raises goes through."""
    app = typer.Typer()
    app.command()(annotate.command)

    def run(*arguments):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["isotrace", "annotate", *map(str, arguments)])
        app(list(map(str, arguments)), standalone_mode=False)
        return capsys.readouterr()

    return run


def usual(world, subject="esm", dictionary="esm"):
    """Few shuffles, and no source that costs time."""
    return (world / subject, world / f"{dictionary}-dictionary", "--data", world / "data.csv", "--domain", "molecule",
            "--permutations", 99, "--bootstrap", 20, "--spellings", 1,
            "--sources", "dictionary,token_identity")  # fmt: skip


@pytest.fixture(scope="module")
def outcome(world):
    """(printed object, run folder) with all sources and concepts from everywhere."""
    app = typer.Typer()
    app.command()(annotate.command)
    out, printed = world / "run", []
    given = [*usual(world)[:-2], "--concepts", world / "mine.csv", "--concepts", world / "labels.csv",
             "--label", "value:rank", "--group", "plate", "--untrained", world / "untrained",
             "--out", out, "--json"]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["isotrace", "annotate", *map(str, given)])
        patch.setattr(annotate.typer, "echo", lambda text, **_: printed.append(text))
        app(list(map(str, given)), standalone_mode=False)
    return json.loads(printed[-1]), out


def test_json_holds_what_stays(outcome):
    found, _ = outcome
    assert (found["n_features"], found["n_sequences"], found["n_rejected"]) == (16, 144, 3)
    assert found["n_concepts"] > found["n_token_concepts"] > 20
    assert found["n_tokens"] > 144 * 4
    assert list(found["sources"]) == ["dictionary", "neurons", "untrained", "random", "token_identity"]
    for name, source in found["sources"].items():
        for level in ("concepts_f1_50", "concepts_f1_80"):
            low, high = source[f"{level}_ci"]
            assert 0 <= low <= high <= found["n_token_concepts"], name
            assert 0 <= source[level] <= found["n_token_concepts"], name
        assert source["concepts_f1_80"] <= source["concepts_f1_50"]
    assert found["sources"]["token_identity"]["concepts_f1_50"] > 0


def test_rows_that_cannot_be_used_are_rejected_with_a_reason(outcome):
    found, out = outcome
    rejects = pl.read_parquet(out / "rejects.parquet")
    assert rejects.to_dicts() == found["rejects"]
    assert rejects["index"].to_list() == [144, 145, 146]
    assert rejects["input"].to_list() == ["C?C", "C1CC", "CCS"]
    assert "value:rank is nan in row 146" in rejects["reason"][2]


def test_concepts_that_cannot_be_tested_are_rows_with_a_reason(outcome):
    table = pl.read_parquet(outcome[1] / "concepts.parquet")
    reasons = dict(zip(table["concept"], table["reason"], strict=True))
    assert set(reasons) > {concept.name for concept in MOLECULE.concepts}
    assert reasons["nowhere"] == "no token carries it"
    assert reasons["same=always"] == "one class only on a side"
    assert reasons["my oxygen"] is reasons["my ester"] is reasons["amine=yes"] is reasons["rank"] is None
    assert reasons["any token"] is None  # special tokens stand for no character
    assert outcome[0]["n_concepts"] == table["reason"].null_count()
    assert outcome[0]["n_concepts_untested"] == len(table) - table["reason"].null_count()


def test_a_column_keeps_groups_on_one_side(outcome):
    sides = pl.read_parquet(outcome[1] / "sequences.parquet").group_by("group").agg(pl.col("side").n_unique())
    assert sides.height == 9
    assert sides["side"].to_list() == [1] * 9


def documented() -> dict[str, dict[str, str]]:
    """Column → type by table, as docs/annotate.md has them."""
    text = (ROOT / "docs/annotate.md").read_text(encoding="utf-8")
    tables = {}
    for name, section in re.findall(r"^### (\w+)\.parquet\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL):
        rows = [[cell.strip() for cell in line.split("|")[1:3]] for line in section.splitlines() if line[:3] == "| `"]
        tables[name] = {}
        for columns, kinds in rows:
            names, types = re.findall(r"`(\w+)`", columns), kinds.split(", ")
            types = types if len(types) == len(names) else types * len(names)
            tables[name] |= dict(zip(names, types, strict=True))
    return tables


def test_the_docs_list_every_column_and_no_other(outcome):
    simple = {pl.String: "text", pl.Int64: "integer", pl.Int32: "integer", pl.Int16: "integer", pl.Float64: "number",
              pl.Float32: "number"}  # fmt: skip
    tables = documented()
    assert {f"{name}.parquet" for name in tables} == {path.name for path in outcome[1].glob("*.parquet")}
    for name, columns in tables.items():
        schema = pl.read_parquet_schema(outcome[1] / f"{name}.parquet")
        found = {}
        for column, kind in schema.items():
            inner = simple[type(kind.inner)] if isinstance(kind, pl.List) else simple[type(kind)]
            plural = inner if inner == "text" else f"{inner}s"
            found[column] = f"list of {plural}" if isinstance(kind, pl.List) else inner
        assert found == columns, name


def test_the_docs_list_every_key_of_the_summary(outcome):
    found, out = outcome
    assert json.loads((out / "annotation.json").read_text()) == {k: v for k, v in found.items() if k != "rejects"}
    text = (ROOT / "docs/annotate.md").read_text(encoding="utf-8")
    section = text[text.index("## Output") : text.index("### features.parquet")]
    named = set(re.findall(r"`(\w+)`", section))
    keys = {*found, *(key for source in found["sources"].values() for key in source)}
    assert keys == named - {"json", "reason"}


def test_the_run_folder_is_whole(outcome):
    names = {path.name for path in outcome[1].iterdir()}
    assert {"annotation.json", "report.html", "manifest.json"} < names
    assert not (outcome[1] / ".work").exists()
    associations = pl.read_parquet(outcome[1] / "associations.parquet")
    assert associations.filter(concept="my oxygen").height > 0
    assert json.loads((outcome[1] / "manifest.json").read_text())["status"] == "complete"


def test_a_table_is_shown_and_the_same_seed_gives_the_same_numbers(isotrace, world, tmp_path):
    given = (*usual(world), "--out", tmp_path / "a", "--no-effects", "--limit", 100, "--spellings", 0)
    found, table = json.loads(isotrace(*given, "--json").out), pl.read_parquet(tmp_path / "a" / "associations.parquet")
    shown = isotrace(*given, "--overwrite").out
    assert pl.read_parquet(tmp_path / "a" / "associations.parquet").equals(table)
    own = found["sources"]["token_identity"]
    assert re.search(rf"token_identity\W+{own['concepts_f1_50']} \[", shown)
    assert "not asked for" in shown
    assert all(warning in shown for warning in found["warnings"])
    assert f"rejected row 0: {'C?C'!r}" not in shown
    assert str(tmp_path / "a" / "report.html") in shown


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (("--sources", "dictionary,neuron"), InputError, "no source 'neuron'"),
        (("--explain", "http://localhost:9"), InputError, "--explain needs --explain-model"),
        (("--group", "dish"), InputError, "no column 'dish' for --group"),
        (("--concepts", "nothing.csv"), InputError, "nothing.csv does not exist"),
        (("--label", "class:dish"), InputError, "no column 'dish'"),
    ],
)
def test_what_is_wrong_is_one_line(isotrace, world, tmp_path, changes, error, said):
    with pytest.raises(error, match=said) as raised:
        isotrace(*usual(world), "--out", tmp_path / "out", *changes)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2
    assert not (tmp_path / "out" / "associations.parquet").exists()


def test_a_dictionary_of_another_subject_is_refused(isotrace, world, tmp_path):
    with pytest.raises(DictionaryError) as raised:
        isotrace(*usual(world, dictionary="bert"), "--out", tmp_path / "out")
    assert raised.value.exit_code == 4
    assert "\n" not in str(raised.value)


def test_a_tokenizer_that_does_not_fit_is_refused(isotrace, world, tmp_path):
    import shutil

    from isotrace.domains.molecule.tokenizer import build_tokenizer

    shutil.copytree(world / "esm", tmp_path / "other")
    build_tokenizer(["CC", "[13CH3]"], min_count=1, max_length=64).save_pretrained(tmp_path / "other")
    with pytest.raises((DictionaryError, SubjectError), match="token"):
        isotrace(tmp_path / "other", *usual(world)[1:], "--out", tmp_path / "out")
