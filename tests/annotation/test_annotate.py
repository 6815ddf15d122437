"""A planted feature is found and shuffled labels give nothing; stopped runs end as if they had not been."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from polars.testing import assert_frame_equal
from scipy import stats

from isotrace.annotation import annotate as engine
from isotrace.annotation import steps
from isotrace.annotation.annotate import Annotation, AnnotationConfig, annotate
from isotrace.annotation.cards.effects import SHOWN
from isotrace.annotation.nulls import sources
from isotrace.base.errors import InputError, RunError
from isotrace.datasets.annotated import prepare
from isotrace.training.loop import train_dictionary
from tiny_annotation import (
    FULL,
    QUICK,
    TABLES,
    Letters,
    StoppedError,
    assert_same,
    chains,
    codes_of,
    make_world,
    planted_dictionary,
    rows_of,
    shuffled_labels,
    stop_after,
    watch,
)


@pytest.fixture(scope="module")
def world(_loaded):
    return make_world(_loaded["esm-rotary"][0])


@pytest.fixture(scope="module")
def trained() -> list:
    """[(subject with random weights, its dictionary)], once `full` has trained it."""
    return []


@pytest.fixture(scope="module")
def full(world, trained, tmp_path_factory) -> Annotation:
    """All five sources."""
    with pytest.MonkeyPatch.context() as patch:

        def train(subject, *arguments, **options):
            trained.append((subject, train_dictionary(subject, *arguments, **options)))
            return trained[0][1]

        patch.setattr(steps, "train_dictionary", train)
        return annotate(*world, tmp_path_factory.mktemp("full") / "work", FULL)


@pytest.fixture(scope="module")
def quick(world, tmp_path_factory) -> Annotation:
    return annotate(*world, tmp_path_factory.mktemp("quick") / "work", QUICK)


def test_a_planted_feature_gets_its_label(world, full):
    data = world[2]
    row = full.features.row(by_predicate=(pl.col("layer") == 0) & (pl.col("feature") == 3), named=True)
    assert (row["label"], row["concept"], row["reason"]) == ("oxygen", "oxygen", None)
    assert (row["f1"], row["f1_ci_low"], row["f1_ci_high"]) == (1, 1, 1)
    assert row["q"] < 0.05
    assert row["null_f1"] < 0.5
    n_oxygen = sum(reading.text.count("O") for reading in data.readings)
    assert row["density"] == pytest.approx(n_oxygen / data.table.n_tokens)
    assert sum(row["histogram"]) == n_oxygen
    assert row["stability"] == 1 > row["stability_null"]
    pair = full.associations.filter(source="dictionary", layer=0, feature=3, concept="oxygen").row(0, named=True)
    assert pair["n_fired"] == pair["n_positive"] == pair["n_instances"]
    assert pair["f1_any"] == pair["f1_full"] == pair["f1_interplm"] == pair["f1_intermol"] == 1
    assert set(full.features.filter(density=0)["reason"]) == {"never active on these sequences"}
    assert full.summary["sources"]["token_identity"]["concepts_f1_80"] >= 3
    assert any("token_identity knows" in warning for warning in full.summary["warnings"])


@pytest.mark.parametrize("seed", range(4))
def test_shuffled_labels_give_nothing(world, tmp_path, seed):
    subject, dictionary, data = world
    found = annotate(subject, dictionary, shuffled_labels(data, seed), tmp_path / "work", replace(QUICK, seed=seed))
    own = found.associations.filter(source="dictionary")
    assert own.height > 5
    assert own["q"].min() >= 0.05
    assert found.features["label"].unique().to_list() == ["unexplained"]
    counts = found.summary["sources"]["dictionary"]
    assert (counts["concepts_f1_50"], counts["concepts_f1_50_ci"], counts["n_labelled"]) == (0, [0, 0], 0)


def test_same_seed_same_tables(world, quick, tmp_path):
    assert_same(annotate(*world, tmp_path / "work", QUICK), quick)
    other = annotate(*world, tmp_path / "work", replace(QUICK, seed=1))
    assert not other.associations["f1_ci_low"].equals(quick.associations["f1_ci_low"])
    assert not (tmp_path / "work").exists()


def test_q_of_the_tables_is_that_of_their_p(full):
    token = full.associations.filter(pl.col("kind") == "token")
    n_tested = full.summary["n_token_concepts"]
    assert set(token["source"]) == set(sources.NAMES)
    for _, own in token.group_by("source"):
        best = own.filter(concept_rank=1)
        assert best["concept"].is_unique().all()
        missing = n_tested - best.height
        q = stats.false_discovery_control([*best["p"], *[1.0] * missing])[: best.height]
        np.testing.assert_allclose(best["q"], q)
        assert (own["p"] == own.select(pl.max_horizontal("p_selection", "p_heldout")).to_series()).all()
        for _, pairs in own.group_by("concept"):
            assert pairs.sort("concept_rank")["concept_rank"].to_list() == list(range(1, pairs.height + 1))
            assert (pairs.sort("concept_rank")["f1_selection"].diff().drop_nulls() <= 0).all()
    for (source, kind, pooling), own in full.associations.group_by("source", "kind", "pooling"):
        assert pooling in ({"class": ["max"], "value": ["max", "mean"]}.get(str(kind), [None])), (source, kind)
        assert own["feature_rank"].min() >= 1


def test_counts_are_those_of_the_tables(full):
    for name in sources.NAMES:
        own = full.associations.filter(
            (pl.col("source") == name) & (pl.col("kind") == "token") & (pl.col("concept_rank") == 1)
        )
        summary = full.summary["sources"][name]
        for level, least in (("f1_50", 0.5), ("f1_80", 0.8)):
            assert summary[f"concepts_{level}"] == own.filter((pl.col("f1") >= least) & (pl.col("q") < 0.05)).height
            low, high = summary[f"concepts_{level}_ci"]
            assert 0 <= low <= high <= full.summary["n_token_concepts"]
        rows = full.coverage.filter(source=name)
        assert rows["n_alive"].sum() == summary["n_alive"] <= summary["n_features"] == rows["n_features"].sum()
    labelled = full.features.filter(pl.col("label") != "unexplained")
    assert full.summary["n_labelled"] == labelled.height == full.coverage["n_labelled"].sum()
    assert (labelled["reason"].is_null()).all()
    assert full.features.filter(label="unexplained")["reason"].null_count() == 0


def test_examples_show_what_the_dictionary_does(world, full):
    subject, dictionary, data = world
    place = {index: i for i, index in enumerate(data.index)}
    for row in full.examples.sample(40, seed=0).to_dicts():
        batch = subject.tokenize([data.readings[place[row["index"]]].text])
        codes = codes_of(subject, dictionary, batch, row["layer"])[:, row["feature"]]
        assert row["positions"] == np.flatnonzero(codes).tolist()
        np.testing.assert_allclose(row["values"], codes[codes > 0], rtol=1e-4, atol=1e-5)
        assert row["activation"] == pytest.approx(codes.max(), rel=1e-4, abs=1e-5)
    planted = full.examples.filter(layer=0, feature=3)
    assert planted.filter(group="near-miss").is_empty()  # it fires wherever there is oxygen
    missed = full.examples.filter(pl.col("group") == "near-miss").join(
        full.features.select("layer", "feature", "concept", "max_activation"), on=["layer", "feature"]
    )
    letter = {"carbon": "C", "oxygen": "O", "nitrogen": "N", "CO": "CO"}
    tested = [row for row in missed.to_dicts() if row["concept"] in letter]
    assert tested
    for row in tested:
        assert letter[row["concept"]] in data.readings[place[row["index"]]].text
        assert row["activation"] < 0.1 * row["max_activation"]


def test_effects_are_those_of_taking_the_write_away(world, full):
    """The planted feature writes to the embeddings: subtract it there by hand and run the whole model."""
    subject, dictionary, data = world
    row = full.features.row(by_predicate=(pl.col("layer") == 0) & (pl.col("feature") == 3), named=True)
    example = full.examples.filter(layer=0, feature=3, group="top").row(0, named=True)
    ids = torch.from_numpy(data.ids[data.index.index(example["index"])])[None]
    at = max(zip(example["values"], example["positions"], strict=True))[1]
    embedded = subject.model.get_input_embeddings()(ids)
    without = embedded.clone()
    for position, value in zip(example["positions"], example["values"], strict=True):
        without[0, position] -= value * dictionary.W_dec[0][3]
    logits = [subject.model(inputs_embeds=x).logits[0, at] for x in (embedded, without)]
    effect = (logits[0] - logits[0].mean()) - (logits[1] - logits[1].mean())
    high, low = effect.topk(SHOWN), (-effect).topk(SHOWN)
    np.testing.assert_allclose(row["promoted_by"], high.values, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(row["suppressed_by"], -low.values, rtol=1e-4, atol=1e-5)
    assert row["promoted"] == subject.tokens(high.indices)
    assert row["suppressed"] == subject.tokens(low.indices)


@pytest.fixture
def work_done(monkeypatch) -> list[str]:
    """What was computed, as it happens; chunks are small, so that there are several."""
    monkeypatch.setattr(sources, "CHUNK_TOKENS", 400)
    return watch(monkeypatch)


def test_a_stopped_run_goes_on_behind_the_last_step(world, quick, work_done, tmp_path):
    """Stopped again and again, one step further each time: nothing is done twice, and the end is the same."""
    for _ in range(20):
        try:
            found = annotate(*world, tmp_path / "work", QUICK, progress=stop_after(len(set(work_done)) + 1))
            break
        except StoppedError:
            pass
    assert_same(found, quick)
    assert len(work_done) - work_done.count("site") == len(set(work_done)) - 1  # no file was written twice
    assert work_done.count("site") == 3  # two layers and token identity
    assert sum(name.startswith("trained-") for name in work_done) > 2


def test_a_file_that_was_being_written_is_written_again(world, quick, work_done, monkeypatch, tmp_path):
    """As a kill leaves it: half a file, and nobody to clear up."""
    save = sources.np.savez

    def half(file, **arrays):
        if len(work_done) == 2:
            file.write(b"half of it")
            raise StoppedError
        save(file, **arrays)

    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(sources.np, "savez", half)
        annotate(*world, tmp_path / "w", QUICK)
    left = {path.name for path in (tmp_path / "w").iterdir()}
    written = {"trained-00000.npz", "trained-00001.npz"}
    assert left == written | {".isotrace-work", ".isotrace-trained-00002.npz.tmp"}
    assert_same(annotate(*world, tmp_path / "w", QUICK), quick)
    assert work_done.count("trained-00000.npz") == work_done.count("trained-00001.npz") == 1


def test_a_folder_that_is_not_its_own_is_refused_and_stays(world, tmp_path):
    (tmp_path / "chapters").mkdir()
    for name in ("thesis.txt", "chapters/one.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(RunError, match="not isotrace's"):
        annotate(*world, tmp_path, QUICK)
    assert {(tmp_path / name).read_text() for name in ("thesis.txt", "chapters/one.txt")} == {"mine"}


@pytest.mark.parametrize("other", ["seed", "labels", "sides", "weights", "threshold", "code"])
def test_work_of_another_annotation_is_not_used(world, quick, work_done, tmp_path, monkeypatch, other):
    subject, dictionary, data = world
    config, code = QUICK, engine.CACHE
    if other == "seed":
        config = replace(QUICK, seed=5)
    if other == "labels":
        data = shuffled_labels(data, 0)
    if other == "sides":
        data = replace(data, held=~data.held)
    if other == "weights":
        dictionary = planted_dictionary(subject)
        dictionary.W_enc[1].data[0, 0] += 1e-6
    if other == "code":
        monkeypatch.setattr(engine, "CACHE", code + 1)
    if other == "threshold":
        config = replace(QUICK, quantiles=(0.0, 0.8))
    with pytest.raises(StoppedError):
        annotate(subject, dictionary, data, tmp_path / "work", config, progress=stop_after(7))
    assert "site" in work_done
    started = len(work_done)
    monkeypatch.setattr(engine, "CACHE", code)
    assert_same(annotate(*world, tmp_path / "work", QUICK), quick)
    assert len(work_done[started:]) == len(set(work_done)) + 2  # all over again: every file, and three sites


def test_sources_that_are_asked_for_do_not_change_each_other(world, full, tmp_path):
    few = annotate(*world, tmp_path / "work", replace(FULL, sources=("dictionary", "neurons"), effects=False))
    assert_frame_equal(few.associations, full.associations.filter(pl.col("source").is_in(["dictionary", "neurons"])))
    assert few.summary["sources"]["random"] == {"reason": "not asked for"}
    assert few.summary["sources"]["neurons"] == full.summary["sources"]["neurons"]
    assert set(few.coverage["source"]) == {"dictionary", "neurons"}
    without = [name for name in few.features.columns if name.startswith(("promoted", "suppressed"))]
    assert len(without) == 4
    assert all(few.features[name].is_null().all() for name in without)
    assert_frame_equal(few.features.drop(without), full.features.drop(without))


def test_an_untrained_dictionary_can_be_given(world, full, trained, tmp_path):
    blank, learned = trained[0]
    different = [
        not torch.equal(a, b) for a, b in zip(blank.model.parameters(), world[0].model.parameters(), strict=True)
    ]
    assert all(different)
    again = sources.untrained_subject(world[0], FULL.seed)
    assert all(torch.equal(a, b) for a, b in zip(blank.model.parameters(), again.model.parameters(), strict=True))
    assert learned.config == world[1].config
    config = replace(FULL, sources=("dictionary", "untrained"), effects=False)
    found = annotate(*world, tmp_path / "work", config, untrained=(again, learned))
    assert_frame_equal(found.associations.filter(source="untrained"), full.associations.filter(source="untrained"))
    assert found.associations.filter(source="untrained").height > 5


def test_a_subject_without_a_head_has_no_effects(world, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(world[0], "has_head", False)
    found = annotate(*world, tmp_path / "work", replace(QUICK, effects=True))
    assert_same(found, replace(quick, summary=quick.summary | {"config": found.summary["config"]}))


@pytest.mark.parametrize("kept", ["token", "whole"])
def test_one_sort_of_concepts_is_enough(world, full, tmp_path, kept):
    """Tables then have the same columns of the same types."""
    subject, dictionary, _ = world
    domain = Letters(only=kept)
    data = prepare(subject, domain, rows_of(chains(120)), [], seed=0)
    found = annotate(subject, dictionary, data, tmp_path / "work", replace(QUICK, effects=True))
    for name in TABLES:
        assert getattr(found, name).schema == getattr(full, name).schema, name
    kinds = {"token"} if kept == "token" else {"class", "value"}
    assert set(found.associations["kind"]) == kinds
    assert (found.features["label"] != "unexplained").any()


def test_what_cannot_be_annotated_is_said(world, tmp_path):
    with pytest.raises(InputError, match="no source 'neuron': give some of dictionary, neurons"):
        AnnotationConfig(sources=("dictionary", "neuron"))
    with pytest.raises(InputError, match="the dictionary itself must be among the sources"):
        AnnotationConfig(sources=("neurons",))
    with pytest.raises(InputError, match="no concept can be tested; the first: on fewer than 5000 tokens of a side"):
        data = prepare(world[0], Letters(only="token"), rows_of(chains(120)), [], seed=0)
        annotate(*world[:2], data, tmp_path / "work", replace(QUICK, min_positive=5_000))
