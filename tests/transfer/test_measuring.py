"""Checkpoints measured on tasks: one test part for all, rows kept, predictors judged by what came out."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

import isotrace
import shell
import tiny
from isotrace.base.errors import InputError
from isotrace.base.result import load
from isotrace.dictionaries.saving import reference, save_dictionary
from isotrace.domains.domain import domain_of
from isotrace.report.transfer.matrix import _row, verdict
from isotrace.stats.metrics import METRICS
from isotrace.subjects.subject import load_subject
from isotrace.transfer.judging.outcomes import OutcomeRow, read_outcomes
from isotrace.transfer.measuring import measure as measuring
from isotrace.transfer.measuring.judgement import judgement, shortfall
from isotrace.transfer.measuring.lists import Checkpoint, TaskSpec, read_checkpoints, read_task_list
from isotrace.transfer.measuring.measure import Measured
from isotrace.transfer.measuring.parts import PART, drawn, labelled_rows, with_parts
from isotrace.transfer.measuring.settings import MeasureSettings
from isotrace.transfer.predictors.predictor import Row
from tiny import random_dictionary

DRAWN = np.random.default_rng(0)
TEXTS = sorted({"".join(DRAWN.choice([*"CCCNO"], DRAWN.integers(5, 17))) for _ in range(150)})
FEW = {"labels": 40, "test": 25, "seeds": 2, "bootstrap": 50, "domain": "molecule", "predictors": ("logme",)}


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """Three subjects, of which one has another tokenizer, and three groups of tasks."""
    folder = tmp_path_factory.mktemp("lists")
    names = ("bert", "esm-rotary", "roberta")
    for name in names:
        tiny.save_subject(tiny.tiny_model(name), folder / name)
    rows = [f"{name},{name},{'one' if i else 'other'},{i * 1000}" for i, name in enumerate(names)]
    (folder / "checkpoints.csv").write_text("\n".join(["name,source,family,tokens_seen", *rows]))
    share = [text.count("N") / len(text) for text in TEXTS]
    frame = pl.DataFrame({"smiles": TEXTS, "share": share, "length": [float(len(t)) for t in TEXTS]})
    frame = frame.with_columns(many=pl.Series(["yes" if x > 0.2 else "no" for x in share]))
    frame = pl.concat([frame, frame[:1].with_columns(smiles=pl.lit("C1CC"))])
    frame.write_csv(folder / "data.csv")
    tasks = ["share,data.csv,share,", "sizes/length,data.csv,length,regression", "rich,data.csv,many,"]
    (folder / "tasks.csv").write_text("\n".join(["name,file,label,kind", *tasks]))
    return folder


@pytest.fixture(scope="module")
def run(lists, tmp_path_factory):
    out = tmp_path_factory.mktemp("transfer") / "run"
    return isotrace.transfer_matrix(lists / "checkpoints.csv", lists / "tasks.csv", out, **FEW), out


def test_every_checkpoint_has_a_row_of_every_task_and_seed_beside_the_forest(run):
    found, out = run
    rows = found.tables["outcomes"]
    assert rows.equals(read_outcomes(out.with_name("run.outcomes")), null_equal=True)
    first = rows.filter(pl.col("metric").is_in(["r2", "auroc"]))
    assert first.height == (3 + 1) * 3 * 2
    assert {*first["checkpoint"]} == {"bert", "esm-rotary", "roberta", "forest"}
    assert {*first["n_train"]} == {40}
    assert (first.filter(pl.col("checkpoint") != "forest")["flops"] > 0).all()
    assert {*rows.filter(checkpoint="roberta")["tokens_seen"]} == {2000}
    assert found.summary["n"] == {
        "checkpoints": 3, "families": 2, "tasks": 3, "groups": 3, "seeds": 2, "labels": 40, "test": 25,
    }  # fmt: skip


def test_predictors_are_judged_beside_what_costs_nothing(run):
    found, _ = run
    names = [row["name"] for row in found.summary["predictors"]]
    assert {*names} == {"logme", "mean rank elsewhere", "any", "all, without the group"}
    scores = found.tables["scores"]
    assert scores.height == 3 * 3 * 2
    assert scores["score"].is_finite().all()
    assert (scores["flops"] > 0).all()
    assert "Which checkpoint transfers" in found.page()
    assert len(repr(found)) <= 1_000


@pytest.mark.parametrize("seed", range(3))
def test_the_predictor_that_knows_is_told_and_is_a_win_only_where_it_is_shown(seed):
    """Eight checkpoints of known worth on six groups of tasks; one predictor knows it, the probe half of it."""
    rng = np.random.default_rng(seed)
    checkpoints = [Checkpoint(f"c{i}", "nowhere", f"f{i // 2}", 1.0, 1.0) for i in range(8)]
    settings, measured, rows = MeasureSettings(n_seeds=1, predictors=("probe", "logme")), [], []
    for t in range(6):
        worth, y = rng.permutation(np.linspace(0.4, 2, 8)), rng.normal(size=200)
        outputs = np.stack([worth[c] * y + rng.normal(size=200) for c in range(8)])[:, None, :, None] / 2
        known = {"logme": worth, "probe": worth + 0.8 * rng.normal(size=8)}
        said = {
            (f"c{c}", 0): tuple(Row(name, float(x[c]), 1, 1.0, 1.0, 1.0, "") for name, x in known.items())
            for c in range(8)
        }
        measured.append(Measured(f"t{t}", outputs, y, tuple(f"g{i // 2}" for i in range(200)), "r2", said))
        for c, one in enumerate([*checkpoints, Checkpoint("forest", "forest", "forest")]):
            value = 0.1 if c == 8 else float(METRICS["r2"](outputs[c, 0], y, np.ones((1, 200)))[0])
            how = "forest" if c == 8 else "probe"
            given = (1, 1.0, 1.0, f"t{t}", "regression", 300, "groups", how, 0, "r2", value, value, value, 1.0, 1.0)
            rows.append(OutcomeRow(one.name, one.family, *given))
    found = judgement(measured, pl.DataFrame(rows), checkpoints, settings, "groups", n_draws=200)
    named = {one.predictor: one for one in found.judged}
    assert min(one.value for one in found.ceilings.values()) > 0.8
    assert named["logme"].means["spearman"].value > 0.9
    assert 0.1 < named["probe"].means["spearman"].value < 0.85
    assert abs(named["mean rank elsewhere"].means["spearman"].value) < 0.7  # tasks have nothing in common
    assert named["logme"].means["regret_1"].value < named["any"].means["regret_1"].value
    assert found.best.predictor == "logme"
    assert found.against["logme"].by["spearman"].over_groups[0] > 0
    assert found.forest.tolist() == [0.1] * 6
    said = verdict(found, [_row(one, found) for one in found.judged])
    assert said.startswith("Best order: logme, Spearman ")
    why = shortfall(found.best, found.against["logme"])
    assert ("It is better than the probe." in said) == (not why)
    dear = replace(found.against["logme"], verdict="better", times_flops=2.0)
    assert "2 times the FLOPs" in shortfall(found.best, dear) or "regret" in shortfall(found.best, dear)
    assert shortfall(named["any"], replace(dear, times_flops=1.0)).startswith("it reaches nan of the ceiling")


def test_a_killed_measurement_goes_on_and_computes_nothing_again(run, lists, tmp_path, monkeypatch):
    calls, plain = [], measuring.adapt

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return plain(*args, **kwargs)

    monkeypatch.setattr(measuring, "adapt", counted)
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        isotrace.transfer_matrix(lists / "checkpoints.csv", lists / "tasks.csv", out, **FEW)
    again = isotrace.transfer_matrix(lists / "checkpoints.csv", lists / "tasks.csv", out, **FEW)
    assert len(calls) == 3 * 3 * 2 + 1
    order = "checkpoint", "task", "seed", "metric"
    same = [one.tables["outcomes"].drop("seconds").sort(order) for one in (again, run[0])]
    assert same[0].equals(same[1], null_equal=True)
    more = FEW | {"predictors": ("logme", "ln_params")}
    told = isotrace.transfer_matrix(lists / "checkpoints.csv", lists / "tasks.csv", out, overwrite=True, **more)
    assert len(calls) == 3 * 3 * 2 + 1  # another predictor trains nothing again
    assert {*told.tables["scores"]["predictor"]} == {"logme", "ln_params"}
    seconds = [one.tables["scores"].filter(predictor="logme")["seconds"].to_list() for one in (again, told)]
    assert seconds[0] == seconds[1]  # nor is scored again what was


def test_one_worker_and_many_measure_the_same_and_leave_nothing_to_do(lists, tmp_path, monkeypatch):
    calls, plain, found = [], measuring.adapt, []
    monkeypatch.setattr(measuring, "adapt", lambda *args, **kwargs: calls.append(args) or plain(*args, **kwargs))
    for n in (1, 2):
        asked = FEW | {"seeds": 1, "workers": n}
        out = tmp_path / str(n)
        found.append(isotrace.transfer_matrix(lists / "checkpoints.csv", lists / "tasks.csv", out, **asked))
    assert not calls  # of this process
    for name, columns in (("outcomes", ["seconds", "key"]), ("scores", ["seconds"]), ("predictors", [])):
        one, two = (f.tables[name].drop(columns, strict=False) for f in found)
        assert one.equals(two, null_equal=True)
    assert (found[1].tables["outcomes"].filter(pl.col("checkpoint") != "forest")["seconds"] > 0.01).all()


def test_features_foretell_where_a_checkpoint_names_a_dictionary(lists, run, tmp_path):
    subject = load_subject(lists / "bert")
    for seed, name in enumerate(("own", "blank")):
        given = {"dtype": torch.float32, "training": {}}
        save_dictionary(random_dictionary(subject, seed=seed), tmp_path / name, reference(subject), **given)
    sources = [f"{name},{lists / source}" for name, source in (("a", "bert"), ("b", "bert"), ("c", "esm-rotary"))]
    rows = [f"{sources[0]},own,b", f"{sources[1]},blank,", f"{sources[2]},,"]
    (tmp_path / "checkpoints.csv").write_text("\n".join(["name,source,dictionary,untrained", *rows]))
    names = ("few_dictionary", "few_neurons", "few_pca", "few_untrained", "inside_dictionary", "ln_params")
    asked = FEW | {"predictors": names, "seeds": 1}
    lists_of = tmp_path / "checkpoints.csv", lists / "tasks.csv", tmp_path / "run"
    with pytest.raises(InputError, match="give --corpus"):
        isotrace.transfer_matrix(*lists_of, **asked)
    scores = isotrace.transfer_matrix(*lists_of, **asked, corpus=TEXTS[:30]).tables["scores"]
    told = {name: {*rows["predictor"]} for (name,), rows in scores.drop_nans("score").group_by("checkpoint")}
    assert told == {"a": {*names}, "b": {*names} - {"few_untrained"}, "c": {"ln_params"}}
    assert "needs features" in scores.filter(checkpoint="c", predictor="few_pca")["reason"][0]
    few = {(one, p): scores.filter(checkpoint=one, predictor=f"few_{p}")["score"].to_list() for one in "ab"
           for p in ("dictionary", "untrained", "neurons")}  # fmt: skip
    assert few["a", "untrained"] == few["b", "dictionary"] != few["a", "dictionary"]
    assert few["a", "neurons"] == few["b", "neurons"]


def test_the_test_part_is_the_same_for_all_seeds_and_shares_no_group(lists):
    task, domain = TaskSpec("share", lists / "data.csv", "share"), domain_of("molecule")
    settings = MeasureSettings(n_train=40, n_test=25)
    rows = with_parts(labelled_rows(task), task, domain, settings)
    assert "C1CC" not in rows["sequence"]  # what is no molecule is in no part
    parts = [drawn(rows, settings, seed) for seed in (0, 1)]
    tests = [part.filter(pl.col(PART) == "test")["sequence"].to_list() for part in parts]
    learned = [part.filter(pl.col(PART) == "train")["sequence"].to_list() for part in parts]
    assert tests[0] == tests[1]
    assert len(tests[0]) <= 25
    assert learned[0] != learned[1]
    groups = [{*domain.groups(texts)} for texts in (tests[0], learned[0])]
    assert not groups[0] & groups[1]


def test_zero_is_a_label(tmp_path):
    pl.DataFrame({"smiles": ["C", "N", "O"], "y": [0, 1, None]}).write_parquet(tmp_path / "y.parquet")
    assert labelled_rows(TaskSpec("y", tmp_path / "y.parquet", "y"))["y"].to_list() == [0, 1]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (read_checkpoints, "name,source\n", "no row"),
        (read_checkpoints, "name,source\na,\n", "row 1, has no source"),
        (read_checkpoints, "name,source\na,b\na,c\n", "'a' twice"),
        (read_checkpoints, "name,source,colour\na,b,red\n", "column 'colour'"),
        (read_checkpoints, "name,source,tokens_seen\na,b,many\n", "'many' is no number"),
        (read_checkpoints, "name,source,untrained\na,b,c\n", "'c', the untrained copy of a"),
        (read_checkpoints, "name,source,untrained\na,b,c\nc,d,\n", "no row with a dictionary"),
        (read_task_list, "name,file,label\na,b.csv,y\n", "no file"),
        (read_task_list, "name,file,label,kind\na,list.csv,y,guess\n", "no kind of task"),
    ],
)
def test_lists_that_cannot_be_used_are_refused_in_a_line(tmp_path, read, text, message):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / "list.csv")
    assert "\n" not in str(caught.value)


def test_the_command_saves_what_it_says(lists, tmp_path):
    asked = ["transfer", lists / "checkpoints.csv", "--tasks", lists / "tasks.csv", "--domain", "molecule"]
    asked += ["--labels", "40", "--test", "25", "--seeds", "1", "--bootstrap", "50"]
    told = json.loads(shell.said(*asked, "--predictors", "logme", "--out", tmp_path / "run", "--json"))
    assert load(tmp_path / "run").summary["verdict"] == told["verdict"]
    assert "was not asked" in told["verdict"] or "No predictor" in told["verdict"]
    with pytest.raises(InputError, match="no predictor 'stars'"):
        shell.said(*asked, "--predictors", "stars", "--out", tmp_path / "other")
