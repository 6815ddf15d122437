"""A dictionary of whole molecules: harvested, trained, evaluated, annotated, listed; from the shell and from Python."""

import json
import sys

import numpy as np
import polars as pl
import pytest
import torch

import isotrace as package
import tiny
from isotrace.activations.harvest import activations
from isotrace.activations.manifest import read_manifest
from isotrace.annotation.annotate import AnnotationConfig, annotate
from isotrace.annotation.nulls.permutation import Tracks
from isotrace.base.errors import InputError
from isotrace.base.result import load
from isotrace.cli import main
from isotrace.datasets.annotated import prepare
from isotrace.report.atlas.annotation import AnnotationResult
from isotrace.stats.permutation import strata
from tiny_annotation import Letters, chains, random_table, rows_of

TOML = "[training]\nbatch_tokens = 64\n[stream]\nblock_tokens = 128\n"


@pytest.fixture
def isotrace(monkeypatch, capsys):
    """A command in this process, which must succeed: what it prints as JSON."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["isotrace", *map(str, arguments), "--json"])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
            sys.exit(0)
        assert not stopped.value.code, arguments
        return json.loads(capsys.readouterr().out)

    return run


def test_a_dictionary_of_latents_through_every_command(folders, isotrace, tmp_path, monkeypatch):
    """With drug classes in a column of the data, and the same pages and numbers from Python."""
    monkeypatch.chdir(tmp_path)
    texts = chains(56)
    rows = [f"{text},{('yes', 'no')[i % 2]},{len(text)}" for i, text in enumerate(texts)]
    (tmp_path / "data.csv").write_text("\n".join(["smiles,inhibitor,weight", *rows]) + "\n")
    (tmp_path / "c.toml").write_text(TOML)
    ted, data = folders["smited"], ("--data", "data.csv", "--domain", "molecule")
    found = isotrace("harvest", ted, *data, "--hookpoints", "latent", "--tokens", 80, "--out", "store")
    assert (found["rows"], found["tokens"], found["hookpoints"]) == ("sequences", 80, ["layers.2.latent"])
    assert read_manifest(tmp_path / "store").stream["mask_rate"] == 0
    shape = ("--architecture", "sae", "--hookpoint", "latent", "--features", 24, "--k", 4, "--config", "c.toml")
    found = isotrace("train", ted, "--domain", "molecule", "--store", "store", *shape, "--tokens", 640, "--out", "sae")
    assert found["dictionaries"][0]["fve"][0] > 0
    found = isotrace("evaluate", ted, "sae", *data, "--bootstrap", 20, "--out", "evaluation")
    assert found["objective"] == "reconstruction"
    assert [one["reason"] is None for one in found["controls"]] == [True, True, False, True]
    assert "tokens decoded from the latent" in (tmp_path / "evaluation/report.html").read_text()
    few = ("--permutations", 20, "--bootstrap", 20, "--min-positive", 8, "--sources", "dictionary,neurons,random")
    labels = ("--label", "class:inhibitor", "--label", "value:weight")
    found = isotrace("annotate", ted, "sae", *data, *few, *labels, "--out", "atlas")
    assert (found["rows"], found["n_tokens"], found["n_sequences"]) == ("sequences", 56, 56)
    assert found["sources"]["neurons"]["n_features"] == 2 * 16
    tables = load(tmp_path / "atlas").tables
    given = tables["concepts"].filter(pl.col("concept").is_in(["inhibitor=yes", "weight"]))
    assert set(given.select("kind", "n_positive").rows()) == {("class", 28), ("value", 56)}
    assert {"none", None} >= set(tables["associations"]["pooling"])
    assert tables["examples"]["positions"].list.len().max() == 0
    assert tables["features"]["promoted"].list.len().max() == 5
    page = (tmp_path / "atlas/report.html").read_text()
    assert '"rows":"sequences"' in page.replace(" ", "")
    assert "coordinates of the vector" in page
    listed = isotrace("features", ted, "sae", *data, "--out", "features")
    assert listed["n_active"] == 56 * 4
    frame = pl.read_parquet(tmp_path / "features/features.parquet")
    assert frame["position"].null_count() == frame.height == frame["token"].null_count()
    subject = package.load_subject(ted, domain="molecule")
    dictionary = package.load_dictionary("sae", subject)
    again = package.features(subject, dictionary, "data.csv").to_frame()
    assert again.equals(frame)
    for verb, given in (
        ("trace", {"data": "CCO", "target": "mask:1"}),
        ("circuit", {"data": "data.csv", "label": "inhibitor"}),
    ):
        with pytest.raises(package.base.errors.IsotraceError, match=r"latent"):
            getattr(package, verb)(subject, dictionary, **given)
    with pytest.raises(InputError, match="explanations are written from activations of tokens"):
        package.annotate(
            subject, dictionary, "data.csv", explain="http://localhost:1", explain_model="m", out="explained"
        )


def test_a_planted_feature_of_molecules_is_named_with_the_f1_of_a_plain_count(rotary, tmp_path):
    """A direction of the pooled vector fitted to nitrogen; the features beside it are random directions."""
    data = prepare(rotary, Letters(), rows_of(chains(120)), [], seed=0)
    site = "layers.{}.pooled"
    dictionary = tiny.random_dictionary(rotary, "sae", n_features=6, k=6, hookpoint_in=site, hookpoint_out=site)
    texts = [reading.text for reading in data.readings]
    vectors = torch.cat([activations(rotary, rotary.tokenize([text]), dictionary.config.reads)[0] for text in texts])
    truth = torch.tensor([1.0 if "N" in text else -1.0 for text in texts])
    with_one = torch.cat([vectors, torch.ones(len(texts), 1)], 1)
    chosen = ~torch.tensor(data.held)
    solution = torch.linalg.lstsq(with_one[chosen], truth[chosen]).solution
    dictionary.W_enc[0].data[:, 2], dictionary.b_enc[0].data[2] = solution[:-1], solution[-1]
    config = AnnotationConfig(n_permutations=99, n_bootstrap=40, min_positive=5, untrained_tokens=256)
    found = annotate(rotary, dictionary, data, tmp_path / "work", config)
    row = found.features.row(2, named=True)
    assert row["label"] == "nitrogen"
    pair = found.associations.filter(source="dictionary", feature=2, concept="nitrogen").row(0, named=True)
    fires = (with_one @ solution).numpy()[data.held] >= pair["threshold"] * (1 - 1e-5)
    carries = truth.numpy()[data.held] > 0
    f1 = 2 * (fires & carries).sum() / (fires.sum() + carries.sum())
    assert pair["f1"] == pytest.approx(f1) == pair["f1_any"]
    assert 0.5 < f1 == pytest.approx(row["f1"])
    assert pair["null_f1"] < pair["f1_ci_low"]
    assert (row["moran_i"], row["stability"]) == (None, None)
    assert row["density"] == pytest.approx(float(((with_one @ solution) > 0).float().mean()))
    assert "Feature atlas" in AnnotationResult.of(found, data).page()


def test_a_sequence_carries_what_one_of_its_tokens_does():
    table = random_table(3)
    whole = table.by_sequence()
    owner = table.sequence_of
    for concept in range(len(table.token_concepts)):
        first, last = table.concept_ptr[[concept, concept + 1]]
        tokens = table.tokens[table.instance_ptr[first] : table.instance_ptr[last]]
        ours = whole.tokens[
            whole.instance_ptr[whole.concept_ptr[concept]] : whole.instance_ptr[whole.concept_ptr[concept + 1]]
        ]
        assert ours.tolist() == sorted(set(owner[tokens].tolist()))
    assert (whole.n_tokens, whole.n_sequences) == (9, 9)
    part = np.asarray([1, 4, 8])
    assert whole.take(part).lengths.tolist() == table.lengths[part].tolist() == table.take(part).lengths.tolist()
    assert whole.take(part).positive().tolist() == [
        len({s for s in part if s in set(whole.tokens[whole.instance_ptr[a] : whole.instance_ptr[b]].tolist())})
        for a, b in zip(whole.concept_ptr, whole.concept_ptr[1:], strict=False)
    ]


def test_whole_sequences_are_shuffled_among_those_of_like_length():
    lengths = np.repeat([5, 9, 30], 60)
    tracks = Tracks.of(np.arange(181), np.zeros(180, dtype=bool), lengths)
    assert tracks.stratum.tolist() == strata(lengths).tolist()
    for index in range(3):
        source = tracks.source(0, index)
        assert sorted(source) == list(range(180))
        assert (lengths[source] == lengths).all()
