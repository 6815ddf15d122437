"""`isotrace scan`: predictions against a plain loop, baselines by hand, the page, and both ways to ask."""

import json
import re
import sys

import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import spearmanr

import isotrace
import published_layouts
import tiny
from isotrace.base.errors import InputError, SubjectError
from isotrace.cli import main
from isotrace.domains.domain import domain_of
from isotrace.domains.mutations import mutated, mutations
from isotrace.domains.substitutions import BLOSUM62, RESIDUES
from isotrace.probing.scan import Marginals, ScanSettings, site_means, spearmans
from isotrace.subjects.subject import load_subject
from isotrace.subjects.targets import parse_target

WILD = "TYKLILNGKTLKGETTTEA"
CELLS = [f"{wild}{site + 1}{to}" for site, wild in enumerate(WILD[:12], 1) for to in "ADFKV" if to != wild]
CELLS += ["T2A:K4R", "Y3F:L5V", "T2A:Y3F:K4R"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return published_layouts.make("esm2", tmp_path_factory.mktemp("scan") / "esm2")


@pytest.fixture(scope="module")
def esm(folder):
    return load_subject(folder, domain="protein")


@pytest.fixture(scope="module")
def data():
    """Effects that rise with BLOSUM62."""
    rng = np.random.default_rng(0)
    effects = [sum(BLOSUM62[c.before, c.after] for c in mutations(cell)) + rng.normal() for cell in CELLS]
    return pl.DataFrame({"variant": CELLS, "score": effects, "sequence": ["X"] * len(CELLS)})


@pytest.fixture(scope="module")
def found(esm, data):
    return isotrace.scan(esm, WILD, data, "variant", "score", offset=-1, bootstrap=100)


def test_predictions_are_those_of_the_target_one_by_one(esm, found):
    frame, batch = found.to_frame(), esm.tokenize([WILD])
    assert frame.height == len(CELLS)
    for cell, value in frame["mutation", "predicted"].rows():
        own = ":".join(str(one._replace(site=one.site - 1)) for one in mutations(cell))
        target = parse_target(f"mutation:{own}", esm, batch)
        prepared = target.prepare(esm, batch)
        assert value == pytest.approx(float(target.value(esm, prepared, target.hidden(esm, prepared))), abs=1e-5)
    cells = found.tables["map"]
    assert cells.height == len(WILD) * 20
    single = frame.filter(pl.col("n_mutations") == 1).select("mutation", "predicted")
    named = cells.with_columns(mutation=pl.concat_str("wild_type", "site", "residue"))
    both = single.join(named, on="mutation", how="left")
    assert both["predicted"].to_list() == both["predicted_right"].to_list()
    assert cells.filter(pl.col("wild_type") == pl.col("residue"))["predicted"].unique().to_list() == [0.0]


def test_what_stands_beside_it(found, data):
    frame, summary = found.to_frame(), found.summary
    by_hand = [sum(BLOSUM62[c.before, c.after] for c in mutations(cell)) for cell in frame["mutation"]]
    assert frame["blosum62"].to_list() == by_hand
    for source, column in (("subject", "predicted"), ("blosum62", "blosum62"), ("site_mean", "site_mean")):
        rho = spearmanr(frame[column], frame["measured"]).statistic
        assert summary["performance"]["all"][source]["value"] == pytest.approx(rho)
    assert summary["performance"]["all"]["blosum62"]["ci"][0] > 0.5
    assert {*summary["performance"]} == {"all", "1 mutation", "2 mutations", "3 mutations"}
    assert summary["performance"]["3 mutations"]["subject"]["value"] is None  # one variant has no rank
    assert summary["n"] == {"variants": 63, "rows": 63, "single": 60, "sites": 12, "rejected": 0} | {
        "variants": len(CELLS), "rows": len(CELLS), "single": len(CELLS) - 3,
    }  # fmt: skip


def test_site_means_leave_the_variant_itself_out():
    means = site_means(np.asarray([1.0, 2.0, 6.0, 10.0]), [(1,), (1,), (1, 2), (3,)])
    assert means.tolist() == [(2 + 6) / 2, (1 + 6) / 2, (1 + 2) / 2, 9 / 3]


def test_intervals_are_over_sites():
    """Copies of a site's variants add nothing: the interval stays as wide."""
    rng = np.random.default_rng(1)
    sites = [(int(site),) for site in np.repeat(np.arange(12), 4)]
    values, truth = rng.normal(size=48), rng.normal(size=48)
    settings, every = ScanSettings(n_bootstrap=200), np.ones(48, dtype=bool)
    one = spearmans({"a": values}, truth, sites, every, settings)["a"]
    copied = spearmans({"a": np.tile(values, 5)}, np.tile(truth, 5), sites * 5, np.tile(every, 5), settings)["a"]
    np.testing.assert_allclose(one, copied, atol=1e-12)
    assert np.ptp(one[1:]) > 0.3


def test_values_that_are_worse_when_high(esm, data, found):
    turned = data.with_columns(score=-pl.col("score"))
    other = isotrace.scan(esm, WILD, turned, "variant", "score", offset=-1, worse="high", bootstrap=100)
    assert other.summary["performance"] == found.summary["performance"]
    assert other.to_frame()["measured"].to_list() == (-found.to_frame()["measured"]).to_list()
    shades = [set(re.findall(r'fill="(#[0-9a-f]{6})"', "".join(one.maps()))) for one in (other, found)]
    assert shades[0] == shades[1]


def test_a_causal_subject_weighs_whole_sequences(folders, data):
    subject = load_subject(folders["gpt2"], domain="protein")
    wild = "CNCCNCCN"
    cells = [f"{a}{i}{b}" for i, a in enumerate(wild, 1) for b in "CNFS" if b != a]
    table = pl.DataFrame({"m": cells, "y": np.random.default_rng(0).normal(size=len(cells))})
    result = isotrace.scan(subject, wild, table, "m", "y", bootstrap=20)
    assert result.summary["method"].startswith("log-likelihoods")
    for cell, value in result.to_frame()["mutation", "predicted"].rows()[:6]:
        both = []
        for text in (mutated(wild, mutations(cell)), wild):
            ids = subject.tokenize([text]).ids
            with torch.no_grad():
                logits = subject.model(input_ids=ids).logits[0].log_softmax(-1)
            own = [float(logits[i - 1, t]) for i, t in enumerate(ids[0].tolist()) if i and not subject.is_special[t]]
            both.append(sum(own))
        assert value == pytest.approx(both[0] - both[1], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"offset": 0}, r"0 of 63 rows|rows have mutations that fit .* give --offset -1"),
        ({"mutations": "varian"}, "for --mutations: did you mean 'variant'"),
        ({"label": "scor"}, "for --label: did you mean 'score'"),
        ({"wild_type": "tyklilng"}, "write residues in capitals"),
        ({"wild_type": ">a\nTY\n>b\nTY\n"}, "no residue|2 sequences"),
        ({"wild_type": ""}, "empty"),
    ],
)
def test_what_cannot_be_scanned_is_one_line(esm, data, change, says):
    given = {"wild_type": WILD, "data": data, "mutations": "variant", "label": "score", "offset": -1} | change
    with pytest.raises(InputError, match=says) as error:
        isotrace.scan(esm, **given)
    assert "\n" not in str(error.value)


def test_files_of_several_or_empty_records_and_other_subjects(esm, data, folders, tmp_path):
    two, empty = tmp_path / "two.fasta", tmp_path / "empty.fasta"
    two.write_text(f">a\n{WILD}\n>b\n{WILD}\n")
    empty.write_text(">a\n\n")
    for file, says in ((two, "holds 2 sequences, of which 2"), (empty, "of which 0 can be used .*empty")):
        with pytest.raises(InputError, match=says):
            isotrace.scan(esm, file, data, "variant", "score", offset=-1)
    with pytest.raises(InputError, match="too few for a scan"):
        isotrace.scan(esm, WILD, data.head(5), "variant", "score", offset=-1)
    with pytest.raises(SubjectError, match="a scan is of residues"):
        isotrace.scan(
            tiny.load_tiny(folders["bert"]), "CCO", pl.DataFrame({"m": ["C1O"] * 30, "y": range(30)}), "m", "y"
        )


def test_from_the_shell_to_a_page_that_is_read_again(folder, data, found, tmp_path, capsys, monkeypatch):
    hostile = '<img src=x onerror=alert(1)>&"'
    fasta, table, out = tmp_path / "wild.fasta", tmp_path / "scan.csv", tmp_path / "out"
    fasta.write_text(f">{hostile}\n{WILD}\n")
    data.rename({"score": hostile}).write_csv(table)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["isotrace", "scan", str(folder), *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
            sys.exit(0)
        assert not stopped.value.code
        return capsys.readouterr().out

    asked = ["--wild-type", fasta, "--data", table, "--mutations", "variant", "--label", hostile, "--offset", -1]
    asked += ["--bootstrap", 100, "--domain", "protein"]
    said = run(*asked, "--out", out)
    assert "BLOSUM62" in said
    assert json.loads(run(*asked, "--json"))["performance"] == found.summary["performance"]
    loaded = isotrace.load(out)
    assert loaded.summary["performance"] == found.summary["performance"]
    assert loaded.to_frame().drop("index").equals(found.to_frame().drop("index"))
    page = (out / "report.html").read_text()
    assert hostile not in page
    assert not re.search(r"<img|onerror=(?!alert\(1\)&gt;)", page.replace("onerror=alert(1)&gt;", ""))
    assert "T2A: predicted" in page
    assert (out / "variants.csv").read_text().startswith("index,mutation,sites")
    assert len(repr(loaded)) <= 1_000
    assert loaded._repr_html_().startswith("<div><svg")


DESIGNS = pl.DataFrame({
    "name": ["<b>one</b>", "two", None, "known", "short", "same", "X", "lower", "stop"],
    "sequence": ["A" + WILD[1:3] + "R" + WILD[4:], " ".join("F" + WILD[1:]), WILD[:-1] + "W", WILD[0] + "A" + WILD[2:],
                 WILD[1:], WILD, "X" + WILD[1:], WILD.lower(), WILD[:-1] + "*"],
})  # fmt: skip


def test_designs_are_placed_among_the_measured(esm, data, found):
    asked = {"offset": -1, "bootstrap": 20}
    result = isotrace.scan(esm, WILD, data, "variant", "score", designs=DESIGNS, **asked)
    rows = {row["index"]: row for row in result.summary["designs"]}
    assert {i: row["mutation"] for i, row in rows.items()} == {0: "T2A:L5R", 1: "T2F", 2: "A20W", 3: "Y3A"}
    batch, predicted = esm.tokenize([WILD]), np.asarray(result.to_frame()["predicted"])
    for row in rows.values():
        own = ":".join(str(one._replace(site=one.site - 1)) for one in mutations(row["mutation"]))
        target = parse_target(f"mutation:{own}", esm, batch)
        prepared = target.prepare(esm, batch)
        assert row["predicted"] == pytest.approx(
            float(target.value(esm, prepared, target.hidden(esm, prepared))), abs=1e-5
        )
        assert row["place"] == pytest.approx((predicted < row["predicted"]).mean(), abs=0.5 / len(predicted) + 1e-9)
    assert rows[0]["blosum62"] == BLOSUM62["T", "A"] + BLOSUM62["L", "R"]
    assert (rows[0]["place_like"], rows[2]["place_like"] is None) == (None, False)  # two variants of two mutations
    known = dict(result.to_frame()["mutation", "measured"].rows())
    assert [rows[i]["measured"] for i in (0, 1, 3)] == [None, known["T2F"], known["Y3A"]]
    assert [rows[i]["new_sites"] for i in (0, 2)] == [0, 1]
    assert result.summary["performance"]["all"]["subject"]["value"] == pytest.approx(
        found.summary["performance"]["all"]["subject"]["value"]
    ), "designs change nothing of what is judged"
    refused = {row["index"]: row["reason"] for row in result.summary["rejected_designs"]}
    assert "has 18 residues, the wild type 19" in refused[4]
    assert refused[5] == "it is the wild type"
    assert "T2X is of a letter that is none" in refused[6]
    assert "capitals" in refused[7]
    assert set(refused) == {4, 5, 6, 7, 8}
    page = result.page()
    assert "<b>one" not in page
    assert page.count('class="design"') == 2 * 5  # a cell of either map
    assert "T2A: predicted" in page.replace("\n", " ")
    assert "in &lt;b&gt;one&lt;/b&gt;" in page.replace("&amp;", "&")
    with pytest.raises(InputError, match="no design of --designs can be used; first reason: it has 18 residues"):
        isotrace.scan(esm, WILD, data, "variant", "score", designs=DESIGNS[4:], **asked)
    one = isotrace.scan(esm, WILD, data, "variant", "score", designs="F" + WILD[1:], **asked)
    assert one.summary["designs"][0] == rows[1] | {"index": 0, "name": None}
    assert found.summary["designs"] is None


def test_letters_at_sites_are_mutations(esm, data):
    cells = [a + b for a in "TAFKV" for b in "LADFK"] + ["TLL", "AX", "al"]
    table = pl.DataFrame({"letters": cells, "y": np.arange(len(cells), dtype=float)})
    result = isotrace.scan(esm, WILD, table, "letters", "y", sites=(2, 5), offset=-1, bootstrap=20)
    named = result.to_frame()["mutation"].to_list()
    assert named[:6] == ["L5A", "L5D", "L5F", "L5K", "T2A", "T2A:L5A"]
    assert len(named) == 24
    reasons = {row["input"]: row["reason"] for row in result.summary["rejects"]}
    assert "changes nothing" in reasons["TL"]
    assert "3 letters for 2 sites" in reasons["TLL"]
    assert "none of the twenty" in reasons["AX"]
    assert "write AL, in capitals" in reasons["al"]
    spelled = pl.DataFrame({"m": named, "y": result.to_frame()["measured"]})
    other = isotrace.scan(esm, WILD, spelled, "m", "y", offset=-1, bootstrap=20)
    assert other.summary["performance"] == result.summary["performance"]
    assert [w for w in result.summary["warnings"] if "no row holds" in w] == []
    wrong = isotrace.scan(esm, WILD, table, "letters", "y", sites=(3, 6), offset=-1, bootstrap=20)
    assert "no row holds YI, what stands at the sites" in wrong.summary["warnings"][0]
    for sites, says in (((2, 40), "--sites 40 is out of range: .* from 2 to 20"), ((2, 2), "names a site twice")):
        with pytest.raises(InputError, match=says):
            isotrace.scan(esm, WILD, table, "letters", "y", sites=sites, offset=-1)


def test_marginals_of_a_token_that_writes_several_residues_are_refused(esm):
    domain = domain_of("protein")
    changes = [tuple(mutations("T1A")), tuple(mutations("T1A:K3R"))]
    marginals = Marginals(esm, domain, WILD, changes)
    assert len(marginals.sets) == len(WILD) + 1
    assert marginals.of_every_residue()[0, RESIDUES.index("A")] == pytest.approx(marginals.of_variants()[0])
    with pytest.raises(InputError, match="does not fit: T stands there"):
        Marginals(esm, domain, WILD, [tuple(mutations("A1T"))])
