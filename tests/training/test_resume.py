"""A training that is stopped, killed or runs out of disk goes on to the weights it would have had."""

import errno
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_training
import torch
from tiny_training import CASES, at, run

import tiny
from isotrace.base.errors import RunError
from isotrace.training import loop
from isotrace.training.checkpoint import VERSION, differences, load_checkpoint, save_checkpoint
from isotrace.training.loop import train

STEPS = [("crosslayer", step) for step in (1, 4, 8, 12, 13, 15)] + [
    (case, step) for case in CASES[1:] for step in (4, 6)
]
STEPS += [("matryoshka", 13), ("several", 19), ("several", 30)]
EVERY = [pytest.param("crosslayer", step, marks=pytest.mark.nightly) for step in (2, 3, 5, 6, 7, 9, 10, 11, 14)]
PLANS = ["crosslayer:step:6", "crosslayer:step:14", "batchtopk:step:5", "matryoshka:step:11", "several:step:20",
         "store:step:20", "crosslayer:write:1", "crosslayer:write:5"]  # fmt: skip


class Stop(Exception):  # noqa: N818
    pass


def stop():
    raise Stop


@pytest.fixture(autouse=True)
def short_statistics(monkeypatch):
    monkeypatch.setattr(loop, "STATISTICS_TOKENS", tiny_training.STATISTICS_TOKENS)


@pytest.fixture(scope="module")
def uninterrupted(folders, tmp_path_factory):
    """(dictionaries, records) every resumed run of a case must reach."""
    subject, found = tiny.load_tiny(folders["esm-rotary"]), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "STATISTICS_TOKENS", tiny_training.STATISTICS_TOKENS)
        for case in CASES:
            records = []
            found[case] = run(subject, case, tmp_path_factory.mktemp(case), records.append), records
    return found


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, two in zip(found, expected, strict=True):
        assert one.config == two.config
        for name, value in two.state_dict().items():
            assert torch.equal(one.state_dict()[name], value), name


def test_the_cases_are_worth_it(uninterrupted):
    """Weights move in every step, every phase and job is there, and checkpoints fall between blocks of steps."""
    for case, (dictionaries, records) in uninterrupted.items():
        names = {"crosslayer", "batchtopk", "matryoshka"} if case in ("several", "store") else {case}
        assert {r["job"] for r in records} == names
        assert all(bool(torch.isfinite(v).all()) for d in dictionaries for v in d.state_dict().values())
        assert all(float(d.density.max()) > 0 for d in dictionaries)
    crosslayer = [r["phase"] for r in uninterrupted["crosslayer"][1]]
    assert crosslayer.count("reconstruct") == 12
    assert crosslayer.count("finetune") >= 4
    assert [r["job"] for r in uninterrupted["several"][1]].count("batchtopk") == 6


@pytest.mark.parametrize(("case", "step"), [*STEPS, *EVERY])
def test_stopped_at_any_step_it_resumes_to_the_same_weights(rotary, tmp_path, uninterrupted, case, step):
    with pytest.raises(Stop):
        run(rotary, case, tmp_path, at(step, stop))
    left = []
    assert_same(run(rotary, case, tmp_path, left.append), uninterrupted[case][0])
    whole = [(r["job"], r["phase"], r["step"]) for r in uninterrupted[case][1]]
    assert [(r["job"], r["phase"], r["step"]) for r in left] == whole[len(whole) - len(left) :]
    assert len(left) > len(whole) - step - 1


@pytest.fixture(scope="module")
def killed(folders, tmp_path_factory):
    """Folder that holds what every plan left behind."""
    if not hasattr(os, "fork"):
        pytest.skip("the script that kills trainings needs fork")
    out = tmp_path_factory.mktemp("killed")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, tiny_training.__file__, str(folders["esm-rotary"]), str(out), *PLANS]
    subprocess.run(command, env=environment, check=True)
    return out


@pytest.mark.parametrize("plan", PLANS)
def test_killed_it_resumes_to_the_same_weights(rotary, killed, uninterrupted, plan):
    """SIGKILL while training, and while a checkpoint is being written."""
    case, kind, _ = plan.split(":")
    folder = killed / plan.replace(":", "-")
    assert (folder / "c.pt").exists() == (plan != "crosslayer:write:1")
    assert (folder / ".isotrace-c.pt.tmp").exists() == (kind == "write")
    steps = []
    assert_same(run(rotary, case, folder, steps.append), uninterrupted[case][0])
    began_again = len(steps) == len(uninterrupted[case][1])
    assert began_again == (plan == "crosslayer:write:1")
    assert not (folder / ".isotrace-c.pt.tmp").exists()


@pytest.mark.parametrize("case", CASES)
def test_a_finished_run_is_not_trained_further(rotary, tmp_path, uninterrupted, case):
    run(rotary, case, tmp_path)
    steps = []
    assert_same(run(rotary, case, tmp_path, steps.append), uninterrupted[case][0])
    assert steps == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed 0 ≠ 1"),
        ({"learning_rate": 1e-3}, r"learning_rate 0\.01 ≠ 0\.001"),
        ({"tokens": 3_200, "clip": None}, r"tokens 960 ≠ 3200; clip 1\.0 ≠ None"),
        ({"dtype": "float64"}, "dtype float32 ≠ float64"),
    ],
)
def test_other_training_settings_do_not_resume(rotary, tmp_path, change, message):
    with pytest.raises(Stop):
        run(rotary, "crosslayer", tmp_path, at(8, stop))
    before = (tmp_path / "c.pt").read_bytes()
    with pytest.raises(RunError, match=rf"other settings: {message}\. Use them again"):
        run(rotary, "crosslayer", tmp_path, **change)
    assert (tmp_path / "c.pt").read_bytes() == before


def test_another_dictionary_or_stream_does_not_resume(rotary, tmp_path):
    with pytest.raises(Stop):
        run(rotary, "crosslayer", tmp_path, at(8, stop))
    jobs, path = tiny_training.jobs(rotary, "crosslayer"), tmp_path / "c.pt"
    stream, given = tiny_training.stream(rotary, jobs), {"subject": rotary, "corpus": tiny_training.corpus(rotary)}
    other = replace(jobs[0], config=replace(jobs[0].config, k=3))
    with pytest.raises(RunError, match="other settings: k 2 ≠ 3"):
        train(stream, [other], path, **given)
    with pytest.raises(RunError, match="other settings: name crosslayer ≠ clt"):
        train(stream, [replace(jobs[0], name="clt")], path, **given)
    with pytest.raises(RunError, match="other settings: jobs"):
        train(stream, [*jobs, replace(jobs[0], name="clt")], path, **given)
    stream.block_tokens = 400
    with pytest.raises(RunError, match="other settings: block_tokens 320 ≠ 400"):
        train(stream, jobs, path, **given)


def test_differences_are_named():
    there = {"a": {"b": 1, "c": (1, 2)}, "d": [{"e": 1}, {"e": 2}], "f": None}
    assert differences(there, {"a": {"b": 1, "c": [1, 2]}, "d": ({"e": 1}, {"e": 2}), "f": None}) == ""
    assert differences(there, there | {"f": 0}) == "f None ≠ 0"
    assert differences(there, there | {"g": 0}) == "g None ≠ 0"
    assert differences(there, there | {"d": [{"e": 1}, {"e": 3}]}) == "e 2 ≠ 3"
    assert differences(there, there | {"a": {"b": 2, "c": (1, 3)}}) == "b 1 ≠ 2; c 2 ≠ 3"


@pytest.mark.parametrize("damage", [lambda b: b[:-20], lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"PK" * 99])
def test_a_damaged_checkpoint(rotary, tmp_path, damage):
    with pytest.raises(Stop):
        run(rotary, "crosslayer", tmp_path, at(8, stop))
    content = damage((tmp_path / "c.pt").read_bytes())
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(RunError, match=r"c\.pt is damaged: delete it and start again\."):
        run(rotary, "crosslayer", tmp_path)
    assert (tmp_path / "c.pt").read_bytes() == content


@pytest.mark.parametrize("changes", [{"format": "other"}, {"format_version": VERSION + 1}])
def test_a_checkpoint_of_another_version(tmp_path, changes):
    save_checkpoint(tmp_path / "c.pt", {"a": 1}, {"b": torch.ones(2)})
    assert torch.equal(load_checkpoint(tmp_path / "c.pt", {"a": 1})["b"], torch.ones(2))
    torch.save(torch.load(tmp_path / "c.pt", weights_only=True) | changes, tmp_path / "c.pt")
    with pytest.raises(RunError, match="no checkpoint of this version"):
        load_checkpoint(tmp_path / "c.pt", {"a": 1})
    assert load_checkpoint(tmp_path / "none.pt", {"a": 1}) is None


def full_after(saves, monkeypatch, broken):
    """The disk is full in the middle of the checkpoint that follows `saves` good ones."""
    real, count = torch.save, [0]

    def save(value, file):
        count[0] += 1
        if count[0] <= saves:
            return real(value, file)
        return broken(real, value, file)

    monkeypatch.setattr(torch, "save", save)


def half_written(real, value, file):
    whole = io.BytesIO()
    real(value, whole)
    file.write(whole.getvalue()[:5_000])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def on_a_full_device(real, value, file):
    with open("/dev/full", "wb") as full:
        real(value, full)


@pytest.mark.parametrize("broken", [half_written, on_a_full_device])
@pytest.mark.parametrize("saves", [0, 1, 3, 4])
def test_a_full_disk_keeps_the_last_checkpoint(rotary, tmp_path, monkeypatch, uninterrupted, saves, broken):
    if broken is on_a_full_device and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with monkeypatch.context() as patch:
        full_after(saves, patch, broken)
        with pytest.raises(RunError, match=r"cannot write .*c\.pt \(.*free space and go on") as caught:
            run(rotary, "crosslayer", tmp_path)
    assert "\n" not in str(caught.value)
    assert {p.name for p in tmp_path.iterdir()} == ({"c.pt"} if saves else set())
    steps = []
    assert_same(run(rotary, "crosslayer", tmp_path, steps.append), uninterrupted["crosslayer"][0])
    whole = len(uninterrupted["crosslayer"][1])
    assert len(steps) == whole if saves == 0 else len(steps) <= whole - 4 * min(saves, 3)
