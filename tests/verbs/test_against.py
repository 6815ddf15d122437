"""`isotrace trace … --against`: two molecules, and a file of pairs, from Python and from the shell, saved and read."""

import json
import re

import polars as pl
import pytest
import torch
from rdkit import Chem
from typer.testing import CliRunner

import isotrace
import tiny
from isotrace.base.errors import InputError
from isotrace.cli.commands import app
from isotrace.dictionaries.saving import reference, save_dictionary
from isotrace.report.pair.index import Pairs
from isotrace.report.pair.pair import PairResult
from isotrace.verbs.tracing import Tracer

QUICK = {"nodes": 4, "controls": 3, "spellings": 2, "domain": "molecule"}
A, B = "CC(=O)Nc1ccccc1", "CC(=O)Oc1ccccc1"
ROWS = [("p1", A, B, "5.2"), ("p2", "CCO", "OCC", ""), ("p3", "CCCN", "CCCO", ">10"), ("p4", "CCCN", "", "1"),
        ("p5", "CCO", "NN", "2"), ("p6", "CCC(=O)N", "CCC(=O)O", "3")]  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(folder of a subject with a probe, folder of its dictionary)."""
    root = tmp_path_factory.mktemp("world")
    subject = tiny.load_tiny(tiny.save_subject(tiny.tiny_model("bert"), root / "bert"))
    save_dictionary(tiny.random_dictionary(subject), root / "clt", reference(subject), dtype=torch.float32, training={})
    return str(root / "bert"), str(root / "clt")


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(["ID,smiles,partner,assay", *(",".join(row) for row in ROWS)]) + "\n")
    return path


@pytest.fixture(scope="module")
def result(world):
    return isotrace.trace(*world, A, "mask:5", against=B, **QUICK)


def test_two_molecules(result, tmp_path):
    assert isinstance(result, PairResult)
    target, circuit = result.summary["target"], result.summary["circuit"]
    assert target["difference"] == target["value"] - target["against"]
    assert circuit["nothing"]["error"] == pytest.approx(abs(target["difference"]))
    assert circuit["error"] == abs(circuit["value"] - target["against"])
    assert result.to_frame().height == circuit["n_features"] == len(result.summary["features"])
    assert result.summary["alignment"]["changed"] == [[3], [3]]
    read = isotrace.load(result.save(tmp_path / "run"))
    assert read == result
    assert read.to_frame().equals(result.to_frame())
    files = {p.name for p in (tmp_path / "run").iterdir()}
    assert {"input.svg", "against.svg", "report.html", "pair.json", "card.svg", "card.png"} <= files
    assert (tmp_path / "run" / "card.svg").read_text() == result.card_svg()
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<meta property="og:image" content="card.png">' in page
    assert '<a href="card.svg" download>' in page
    assert f'data-copy="{A}"' in page
    assert "all results" not in page
    assert "og:image" not in result.page()  # of which nobody knows where it will lie


def test_what_features_do_is_told(result):
    aligned = {
        "only in A": (True, False),
        "only in B": (False, True),
        "changed": (True, True),
        "unchanged": (True, True),
    }
    for row in result.summary["features"]:
        assert (row["activation"] > 0, row["activation_against"] > 0) == aligned[row["status"]]
        if row["status"] == "unchanged":
            assert row["activation"] == pytest.approx(row["activation_against"], rel=0.12)
    assert sum(count["changed"] for count in result.summary["counts"]) > 0
    assert {count["lane"] for count in result.summary["counts"]} <= {"changed", "common", "syntax", "special"}


def test_the_page_and_the_notebook(result):
    page, shown = result.page(), result._repr_html_()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert page.count('<svg xmlns="http://www.w3.org/2000/svg" class="molecule"') == 2
    assert page.count('class="outlined"') == 2
    for text in (page, shown):
        assert "matched random swaps are" in text
        assert "outside the common part" in text
    assert len(shown) < 30_000
    assert len(repr(result)) < 1_000


def test_a_molecule_for_a_text(world, result):
    mols = [Chem.MolFromSmiles(text) for text in (A, B)]
    found = isotrace.trace(*world, mols[0], "mask:5", against=mols[1], **QUICK)
    assert (found.summary["input"], found.summary["against"]) == (A, B)
    assert found.summary["circuit"] == result.summary["circuit"]


def test_a_file_of_pairs(world, table, tmp_path):
    found = isotrace.trace(*world, table, "mask:2", against="partner", out=tmp_path / "o", **QUICK)
    assert isinstance(found, Pairs)
    frame = found.to_frame()
    assert frame["name"].to_list() == ["p1", "p3", "p6"]
    assert frame["assay"].to_list() == ["5.2", ">10", "3"], "the user's own column, as it was"
    assert frame["against"].to_list() == [B, "CCCO", "CCC(=O)O"]
    assert frame["difference"].to_list() == pytest.approx((frame["value"] - frame["value_against"]).to_list())
    reasons = {r["index"]: r["reason"] for r in found.summary["rejects"]}
    assert reasons.keys() == {1, 3, 4}
    assert "same molecule" in reasons[1]
    assert "empty" in reasons[3]
    assert "connected atoms" in reasons[4]
    read = isotrace.load(tmp_path / "o")
    assert read == found
    assert "00000-p1/report.html" in read.page()
    assert "../00000-p1/card.png" in read.page()
    assert '<a href="../summary/report.html">' in (tmp_path / "o/00000-p1/report.html").read_text()
    assert isotrace.load(tmp_path / "o/00000-p1").summary["name"] == "p1"
    assert pl.read_parquet(tmp_path / "o/summary/pairs.parquet").equals(frame)


def test_a_stopped_file_goes_on(world, table, tmp_path, monkeypatch):
    real, seen = Tracer.pair, []

    def pair(self, sequence, *given, **more):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(sequence)
        return real(self, sequence, *given, **more)

    monkeypatch.setattr(Tracer, "pair", pair)
    given = {"against": "partner", "out": tmp_path / "o", **QUICK}
    with pytest.raises(KeyboardInterrupt):
        isotrace.trace(*world, table, "mask:2", **given)
    assert (tmp_path / "o/00000-p1/manifest.json").is_file()
    monkeypatch.setattr(Tracer, "pair", lambda self, *a, **more: seen.append(a[0]) or real(self, *a, **more))
    found = isotrace.trace(*world, table, "mask:2", **given)
    assert len(found.summary["pairs"]) == 3
    assert seen.count(A) == 1, "the first is not computed again"


def test_from_the_shell(world, result, tmp_path):
    words = ["trace", *world, A, "--target", "mask:5", "--against", B, "--domain", "molecule", "--nodes", "4",
             "--controls", "3", "--spellings", "2"]  # fmt: skip
    said = CliRunner().invoke(app, [*words, "--json"])
    assert json.loads(said.stdout)["circuit"] == json.loads(json.dumps(result.summary["circuit"]))
    said = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")])
    assert said.exit_code == 0
    assert f"{A}  against  {B}" in said.stdout
    assert "report.html" in said.stdout


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"against": "partnr"}, "no column 'partnr' for --against"),
        ({"against": "partner", "supernodes": "s.json"}, "without a graph: leave out --supernodes"),
        ({"against": "partner", "circuit": "effects", "max_features": 9}, "leave out --max-features, --circuit"),
        ({"quick": True, "tolerance": 0.5}, "neither graph nor circuit: leave out --tolerance, --nodes, --controls, "),
    ],
)
def test_what_is_refused(world, table, given, reason):
    with pytest.raises(InputError, match=reason):
        isotrace.trace(*world, table, "mask:2", **given, **QUICK)


def test_a_list_needs_a_column(world):
    with pytest.raises(InputError, match="a column"):
        isotrace.trace(*world, [A, B], "mask:2", against=Chem.MolFromSmiles(A), **QUICK)
