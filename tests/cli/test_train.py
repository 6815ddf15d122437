"""`isotrace train` and `isotrace harvest`, as typed."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import polars as pl
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import tiny
from isotrace.base.errors import InputError, IsotraceError, RunError
from isotrace.base.runs import open_run, read_manifest
from isotrace.cli import app
from isotrace.dictionaries.saving import load_dictionary
from isotrace.training import callbacks, loop
from isotrace.training.callbacks import JsonlLog, read_log, scalars
from isotrace.verbs import training

CONFIG = """
[dictionary]
n_features = 12
k = 2
[training]
batch_tokens = 64
dtype = "float32"
dead_after = 128
[stream]
block_tokens = 128
harvest_tokens = 64
"""


@pytest.fixture(autouse=True)
def short_statistics(monkeypatch):
    monkeypatch.setattr(loop, "STATISTICS_TOKENS", 128)


@pytest.fixture
def files(tmp_path, folders):
    """(subject folder, data file, config file)."""
    data, config = tmp_path / "data.smi", tmp_path / "train.toml"
    data.write_text("\n".join([*tiny.MOLECULES, "C1CC", "C?C"]) + "\n")
    config.write_text(CONFIG)
    return folders["esm-rotary"], data, config


def invoke(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if isinstance(result.exception, IsotraceError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def train(files, out, *more, architecture="crosslayer", tokens=256):
    subject, data, config = files
    common = ["--architecture", architecture, "--data", data, "--config", config, "--tokens", tokens, "--out", out]
    return invoke("train", subject, *common, "--domain", "molecule", *more)


def test_a_run_folder_is_a_dictionary_with_its_record(files, tmp_path):
    out = tmp_path / "run"
    summary = json.loads(train(files, out, "--json"))
    (one,) = summary["dictionaries"]
    assert (one["architecture"], one["k"], one["window"], one["tokens"]) == ("crosslayer", 2, 3, 256)
    assert len(one["fve"]) == tiny.N_LAYERS
    dictionary = load_dictionary(out, tiny.load_tiny(files[0]))
    assert float(dictionary.density.max()) > 0
    record = json.loads((out / "dictionary.json").read_text())["training"]
    assert record["training"]["dtype"] in ("float32", "bfloat16")  # what "auto" was
    rejects = pl.read_parquet(out / "rejects.parquet")
    assert rejects["input"].to_list() == ["C1CC", "C?C"]
    assert summary["n_rejected"] == 2
    records = read_log(out / "log.jsonl")
    assert [r["tokens"] for r in records] == [64, 128, 192, 256]
    assert all({"loss", "fve", "l0", "dead", "tokens_per_s", "eta_s"} <= r.keys() for r in records)
    manifest = read_manifest(out)
    assert manifest["status"] == "complete"
    assert set(manifest["files"]) == {p.name for p in out.iterdir()} - {"manifest.json"}
    assert not (out / "checkpoint.pt").exists()
    assert "<svg" in (out / "training.svg").read_text()


def test_seeds_train_side_by_side_from_one_stream(files, tmp_path):
    summary = json.loads(train(files, tmp_path / "run", "--seeds", "0,1", "--json"))
    assert [d["name"] for d in summary["dictionaries"]] == ["seed-0", "seed-1"]
    one, two = (load_file(tmp_path / "run" / name / "weights.safetensors") for name in ("seed-0", "seed-1"))
    assert not torch.equal(one["W_enc.0"], two["W_enc.0"])
    train(files, tmp_path / "alone")
    alone = load_file(tmp_path / "alone" / "weights.safetensors")
    assert all(torch.equal(alone[name], one[name]) for name in one)


SLOW = """
import sys, time
import isotrace.training.callbacks as callbacks
import isotrace.training.loop as loop
import torch
torch.set_num_threads(1)
loop.STATISTICS_TOKENS = 128
loop.train.__kwdefaults__["checkpoint_tokens"] = 128
plain = callbacks.JsonlLog.__call__
def slow(self, record):
    plain(self, record)
    time.sleep(0.2)
callbacks.JsonlLog.__call__ = slow
from isotrace.cli import main
main()
"""


def test_a_killed_run_resumes_to_the_same_weights(files, tmp_path):
    subject, data, config = files
    out = tmp_path / "killed"
    arguments = ["train", subject, "--architecture", "crosslayer", "--data", data, "--config", config]
    arguments += ["--tokens", 1_024, "--out", out, "--domain", "molecule"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", SLOW, *map(str, arguments)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + 60
        while not (out / "checkpoint.pt").exists():
            assert child.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
    with pytest.raises(RunError, match="unfinished run"):
        train(files, out, tokens=1_024)
    with pytest.raises(RunError, match=r"tokens 1024 ≠ 2048"):
        train(files, out, "--resume", tokens=2_048)
    train(files, out, "--resume", tokens=1_024)
    train(files, tmp_path / "whole", tokens=1_024)
    one, two = (load_file(folder / "weights.safetensors") for folder in (out, tmp_path / "whole"))
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert [r["tokens"] for r in read_log(out / "log.jsonl")] == list(range(64, 1_025, 64))


def test_training_from_a_store(files, tmp_path):
    subject, data, config = files
    common = ["--data", data, "--tokens", 1_200, "--shard-tokens", 400, "--domain", "molecule"]
    summary = json.loads(invoke("harvest", subject, *common, "--out", tmp_path / "store", "--json"))
    assert (summary["tokens"], summary["shards"]) == (1_200, 3)
    assert [r["input"] for r in summary["rejects"]] == ["C1CC", "C?C"]
    common = ["--architecture", "transcoder", "--config", config, "--tokens", 256, "--domain", "molecule"]
    arguments = ["train", subject, *common, "--store", tmp_path / "store"]
    invoke(*arguments, "--out", tmp_path / "run")
    assert load_dictionary(tmp_path / "run", tiny.load_tiny(subject)).config.architecture == "transcoder"
    shard = next((tmp_path / "store").glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-8])
    with pytest.raises(RunError, match=shard.name):
        invoke(*arguments, "--out", tmp_path / "bad")
    summary = json.loads(invoke(*arguments, "--out", tmp_path / "skipped", "--skip-bad-shards", "--json"))
    assert shard.name in summary["warnings"][0]


def test_a_store_of_another_subject_is_refused(files, folders, tmp_path):
    subject, data, config = files
    invoke("harvest", subject, "--data", data, "--tokens", 100, "--domain", "molecule", "--out", tmp_path / "store")
    common = ["--architecture", "sae", "--config", config, "--out", tmp_path / "run", "--domain", "molecule"]
    with pytest.raises(RunError, match="harvested from"):
        invoke("train", folders["bert"], *common, "--store", tmp_path / "store")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[nonsense]", "unknown section"),
        ("[training]\nlearning_rat = 1", "learning_rat"),
        ("[training]\nbatch_tokens = -1", "batch_tokens"),
        ("[dictionary]\nn_features = 4\nk = 5", "larger than n_features"),
        ("[dictionary]\nactivation = 'softmax'", "no sparsity rule"),
        ("[dictionary]\nactivation = 'relu'\nk = 3", "takes no k"),
        ("[dictionary]\nlayers = [0, 9]", "has layers 0 to 2"),
        ("[stream]\nmask_rate = 2", "mask_rate"),
        ("[[jobs]]\nname = 'a'\n[[jobs]]\nname = 'a'", "name of its own"),
        ("[[jobs]]\nname = 'a'\nkk = 1", "unknown key"),
        ("not toml", "TOML"),
    ],
)
def test_settings_that_do_not_fit_are_named(files, tmp_path, config, message):
    files[2].write_text(config)
    with pytest.raises(IsotraceError, match=message):
        train(files, tmp_path / "run")
    assert not (tmp_path / "run" / "dictionary.json").exists()


def test_bad_calls(files, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(IsotraceError, match="no architecture"):
        train(files, out, architecture="autoencoder")
    with pytest.raises(InputError, match="--data with sequences, or --store"):
        train(files, out, "--store", tmp_path)
    with pytest.raises(RunError, match="no run to resume"):
        train(files, out, "--resume")
    with pytest.raises(InputError, match="--log"):
        train(files, out, "--log", "paper")
    files[1].write_text("C?C\n")
    with pytest.raises(InputError, match="no row"):
        train(files, out)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed_is_named_with_its_extra(files, tmp_path, monkeypatch, name):
    monkeypatch.setattr(callbacks, "find_spec", lambda module: None)
    with pytest.raises(RunError, match=f"isotrace\\[{name}\\]"):
        train(files, tmp_path / "run", "--log", name)


def test_a_log_replaces_the_steps_that_are_run_again(tmp_path):
    def record(step):
        return {"job": "a", "phase": "reconstruct", "step": step, "tokens": step * 10, "loss": 1.0, "fve": [0.5]}

    path = tmp_path / "log.jsonl"
    log = JsonlLog(path)
    for step in (1, 2, 3):
        log(record(step))
    log.close()
    path.write_text(path.read_text() + '{"job": "a", "cut sho')
    log = JsonlLog(path)
    log(record(2) | {"loss": 2.0})
    log.close()
    assert [(r["step"], r["loss"]) for r in read_log(path)] == [(1, 1.0), (2, 2.0)]
    assert scalars(record(1)) == {"loss": 1.0, "fve/0": 0.5}


def test_a_log_damaged_before_its_last_line_is_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step":\n{"step": 3}\n')
    with pytest.raises(RunError, match=r"line 2 of .*log\.jsonl"):
        read_log(path)


def bare(files, out, *more, architecture="sae"):
    """Without --tokens and --config."""
    common = ["--architecture", architecture, "--domain", "molecule", "--features", 12, "--k", 2, "--layers", "0"]
    return invoke("train", files[0], "--data", files[1], "--out", out, *common, *more)


def test_the_usual_training_is_four_passes_within_bounds(files, monkeypatch, tmp_path):
    found = {}
    monkeypatch.setattr(training, "train", lambda stream, jobs, *given, **more: found.update(jobs=jobs) or 1 / 0)
    tokens = sum(len(ids) for ids in tiny.load_tiny(files[0]).tokenizer(tiny.MOLECULES)["input_ids"])

    def usual(*more, name="run"):
        with pytest.raises(ZeroDivisionError):
            given = ("--data", files[1], "--out", tmp_path / name, "--architecture", "sae", "--domain", "molecule")
            CliRunner().invoke(app, [*map(str, ("train", files[0], *given)), *more], catch_exceptions=False)
        return [job.training.tokens for job in found["jobs"]]

    assert usual() == [200_000]
    monkeypatch.setattr(training, "FEWEST_TOKENS", 1)
    assert usual() == [4 * tokens]
    monkeypatch.setattr(training, "MOST_TOKENS", 100)
    assert usual() == [100]
    assert usual("--tokens", "77") == [77]
    files[2].write_text('[[jobs]]\nname = "a"\ntraining = { tokens = 5 }\n[[jobs]]\nname = "b"\n')
    assert usual("--config", str(files[2])) == [5, 100]


def test_the_plan_is_printed(files, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "TIMED_STEPS", 2)
    result = CliRunner().invoke(app, [*map(str, said(files, tmp_path / "run"))])
    assert result.exit_code == 0
    first, second = result.stderr.splitlines()
    assert re.fullmatch(r"dictionary: 256 tokens, [\d.]+ passes of \d+, in 4 steps of 64", first)
    assert re.fullmatch(r"about 0:\d\d to go at [\d,]+ tokens per second", second)


def test_one_flag_says_where_an_autoencoder_reads_and_what_is_masked(files, tmp_path):
    bare(files, tmp_path / "run", "--tokens", 256, "--hookpoint", "resid_post", "--mask-rate", 0)
    record = json.loads((tmp_path / "run" / "dictionary.json").read_text())
    assert record["config"]["hookpoint_in"] == record["config"]["hookpoint_out"] == "layers.{}.resid_post"
    assert record["training"]["stream"]["mask_rate"] == 0
    with pytest.raises(InputError, match="--hookpoint is for an sae"):
        bare(files, tmp_path / "other", "--hookpoint", "resid_post", architecture="transcoder")
    with pytest.raises(InputError, match="neuron is 24 wide"):
        bare(files, tmp_path / "other", "--hookpoint", "neuron")
    with pytest.raises(IsotraceError, match="nowhere"):
        bare(files, tmp_path / "other", "--hookpoint", "nowhere")
    with pytest.raises(InputError, match="--mask-rate is for --data"):
        invoke(
            "train", files[0], "--store", tmp_path, "--mask-rate", 0.1, "--architecture", "sae", "--out", tmp_path / "o"
        )
    assert not (tmp_path / "other").exists()


def test_what_was_stopped_before_its_first_checkpoint_is_resumed(files, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", lambda *given, **more: 1 / 0)
        assert CliRunner().invoke(app, [*map(str, said(files, tmp_path / "run"))]).exit_code
    assert read_manifest(tmp_path / "run")["status"] == "failed"
    train(files, tmp_path / "run", "--resume")
    train(files, tmp_path / "whole")
    one, two = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("run", "whole"))
    assert one == two
    with pytest.raises(RunError, match="the run is finished"):
        train(files, tmp_path / "run", "--resume")


def said(files, out):
    subject, data, config = files
    given = ["--architecture", "crosslayer", "--data", data, "--config", config, "--tokens", 256, "--out", out]
    return ["train", subject, *given, "--domain", "molecule"]


def test_rejects_are_counted_and_the_first_are_shown(files, tmp_path):
    files[1].write_text("\n".join([*tiny.MOLECULES, *(f"C{'?' * n}C" for n in range(1, 6))]) + "\n")
    for printed in (
        bare(files, tmp_path / "run", "--tokens", 64),
        invoke(
            "harvest", files[0], "--domain", "molecule", "--data", files[1], "--tokens", 64, "--out", tmp_path / "h"
        ),
    ):
        assert "5 rows rejected\n  rejected row 10: 'C?C': " in printed
        assert printed.count("rejected row") == 3
        assert "  and 2 more: " in printed
        assert "rejects.parquet lists them" in printed
    for folder in ("run", "h"):
        assert pl.read_parquet(tmp_path / folder / "rejects.parquet")["index"].to_list() == [10, 11, 12, 13, 14]


def test_a_harvest_replaces_a_store_when_it_is_told_to(files, tmp_path):
    given = ("harvest", files[0], "--domain", "molecule", "--data", files[1], "--out", tmp_path / "h", "--tokens")
    invoke(*given, 64, "--shard-tokens", 16)
    with pytest.raises(RunError, match="give --overwrite"):
        invoke(*given, 32)
    invoke(*given, 32, "--overwrite")
    train(files, tmp_path / "run")
    with pytest.raises(RunError, match="give --overwrite"):
        invoke(*given[:-2], tmp_path / "run", "--tokens", 32)
    (tmp_path / "failed").mkdir()
    with pytest.raises(InputError), open_run(tmp_path / "failed", command="c", seed=0, inputs={}, overwrite=False):
        raise InputError("mistyped")
    invoke(*given[:-2], tmp_path / "failed", "--tokens", 32)
    assert (tmp_path / "failed" / "shard-00000.safetensors").exists()
    assert sorted(p.name for p in (tmp_path / "h").iterdir()) == [
        "manifest.json",
        "rejects.parquet",
        "shard-00000.safetensors",
    ]


def test_what_a_dictionary_was_trained_on_is_no_test_of_it(files, tmp_path):
    train(files, tmp_path / "run")
    other = tmp_path / "other.smi"
    other.write_text("\n".join(tiny.MOLECULES[:5]) + "\n")
    common = (files[0], tmp_path / "run", "--domain", "molecule", "--bootstrap", 20, "--json")
    quick = ("--permutations", 20, "--spellings", 0, "--no-effects", "--min-positive", 1)
    options = {"evaluate": ("--no-controls",), "annotate": ("--sources", "dictionary", *quick)}
    for verb, more in options.items():
        for data, warned in ((files[1], True), (other, False)):
            warnings = json.loads(invoke(verb, *common, *more, "--data", data))["warnings"]
            assert any("was trained on this data" in warning for warning in warnings) == warned, verb
