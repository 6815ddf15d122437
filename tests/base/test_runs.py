import json
import math
import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from isotrace.base.errors import InputError, RunError
from isotrace.base.files import locked
from isotrace.base.identity import sha256_file
from isotrace.base.runs import dumps, is_done, open_run, read_manifest, remove_run, to_jsonable


def start(path, *, command="isotrace trace CCO", seed=3, inputs=None, overwrite=False, resume=False):
    return open_run(path, command=command, seed=seed, inputs=inputs or {}, overwrite=overwrite, resume=resume)


def files(path: Path) -> set[str]:
    return {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}


def test_what_is_written_is_read_back_and_listed_with_its_hash(tmp_path):
    frame = pl.DataFrame({"index": [0, 1], "label": ["a", None]})
    base = torch.arange(6.0).reshape(2, 3)
    tensors = {"base": base, "view": base.T, "half": base.to(torch.bfloat16)}
    with start(tmp_path / "a/run") as run:
        run.table("rejects", frame)
        run.tensors("graph", tensors)
        run.text("page.svg", "<svg>σ</svg>")
        run.json("cards/0", {"x": math.nan})
    assert files(run.path) == {"manifest.json", "rejects.parquet", "graph.safetensors", "page.svg", "cards/0.json"}
    assert pl.read_parquet(run.path / "rejects.parquet").equals(frame)
    stored = load_file(run.path / "graph.safetensors")
    assert stored.keys() == tensors.keys()
    assert all(torch.equal(stored[key], value) and stored[key].dtype == value.dtype for key, value in tensors.items())
    assert (run.path / "page.svg").read_text(encoding="utf-8") == "<svg>σ</svg>"
    assert json.loads((run.path / "cards/0.json").read_text()) == {"x": None}
    manifest = read_manifest(run.path)
    assert manifest["files"] == {name: sha256_file(run.path / name) for name in files(run.path) - {"manifest.json"}}
    assert manifest["status"] == "complete"
    assert (manifest["seed"], manifest["command"]) == (3, "isotrace trace CCO")
    assert manifest["wall_seconds"] >= 0
    assert manifest["versions"]["torch"].startswith(torch.__version__.split("+")[0])


def test_hashes_agree_with_the_standard_tool(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1, and the digest of no bytes
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_file(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_inputs_are_hashed_by_content(tmp_path):
    folder = tmp_path / "subject"
    folder.mkdir()
    (folder / "config.json").write_text("{}")

    def digest():
        with start(tmp_path / "run", inputs={"subject": folder, "target": "CCO"}) as run:
            return run.manifest["inputs"]["subject"]["sha256"]

    first = digest()
    assert first == digest()
    (folder / "config.json").write_text("{ }")
    second = digest()
    (folder / "config.json").rename(folder / "other.json")
    assert len({first, second, digest()}) == 3
    assert read_manifest(tmp_path / "run")["inputs"]["target"]["value"] == "CCO"
    with (
        pytest.raises(InputError, match="nowhere, the data, cannot be read"),
        start(tmp_path / "new", inputs={"data": tmp_path / "nowhere"}),
    ):
        pass
    assert not (tmp_path / "new").exists()


def test_the_same_command_replaces_its_own_run(tmp_path):
    with start(tmp_path) as run:
        run.text("old.txt", "")
        run.table("t", pl.DataFrame({"x": [0.1, 0.2]}))
    first = read_manifest(tmp_path)["files"]["t.parquet"]
    with start(tmp_path) as run:
        run.table("t", pl.DataFrame({"x": [0.1, 0.2]}))
    assert files(tmp_path) == {"manifest.json", "t.parquet"}
    assert read_manifest(tmp_path)["files"] == {"t.parquet": first}


def test_another_command_needs_overwrite(tmp_path):
    with start(tmp_path) as run:
        run.text("a.txt", "a")
    with pytest.raises(RunError, match="holds the run 'isotrace trace CCO'"), start(tmp_path, command="other"):
        pass
    assert files(tmp_path) == {"manifest.json", "a.txt"}
    with start(tmp_path, command="other", overwrite=True):
        pass
    assert files(tmp_path) == {"manifest.json"}


def test_a_failed_or_stopped_run_blocks_no_other_command(tmp_path):
    for error in (InputError("a typo"), KeyboardInterrupt()):
        with pytest.raises(type(error)), start(tmp_path, command="mistyped") as run:
            run.text("a/b.txt", "a")
            raise error
        with start(tmp_path, command="corrected") as run:
            run.text("b.txt", "b")
        assert files(tmp_path) == {"manifest.json", "b.txt"}
        remove_run(tmp_path)
        assert not tmp_path.exists()
    with start(tmp_path) as run:
        run.text("a/b.txt", "a")
        (tmp_path / "a" / "mine.txt").write_text("mine")
    remove_run(tmp_path)
    assert files(tmp_path) == {"a/mine.txt"}


def test_only_an_untouched_run_of_the_same_is_done(tmp_path):
    asked = {"command": "c", "seed": 0, "inputs": {"data": "CCO"}}
    with start(tmp_path, **asked) as run:
        run.text("a.txt", "a")
        assert not is_done(tmp_path, **asked)
    assert is_done(tmp_path, **asked)
    for change in ({"command": "d"}, {"seed": 1}, {"inputs": {"data": "CCN"}}):
        assert not is_done(tmp_path, **asked | change)
    (tmp_path / "a.txt").write_text("b")
    assert not is_done(tmp_path, **asked)
    assert not is_done(tmp_path / "none", **asked)


def test_what_a_kill_leaves_in_the_work_is_cleared(tmp_path):
    with pytest.raises(KeyboardInterrupt), start(tmp_path) as run:
        run.work.mkdir()
        raise KeyboardInterrupt
    for name in (".isotrace.lock", ".isotrace-x.npy.tmp"):
        (tmp_path / ".work" / name).touch()
    with start(tmp_path):
        assert not (tmp_path / ".work" / ".isotrace-x.npy.tmp").exists()


def test_what_another_process_is_writing_inside_is_left_alone(tmp_path):
    with start(tmp_path / "outer" / "inner") as inner:
        (inner.path / ".isotrace-x.tmp").touch()
        (tmp_path / "outer" / "pages").mkdir()
        (tmp_path / "outer" / "pages" / ".isotrace-y.tmp").touch()
        with locked(tmp_path / "outer"):
            assert {path.name for path in (tmp_path / "outer").rglob("*.tmp")} == {".isotrace-x.tmp"}
        (inner.path / ".isotrace-x.tmp").unlink()


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_no_run_wrote_are_never_touched(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(RunError, match=r"no run wrote \(thesis.tex\)"), start(tmp_path, overwrite=overwrite):
        pass
    (tmp_path / "thesis.tex").rename(tmp_path.parent / "thesis.tex")
    with start(tmp_path) as run:
        run.text("a.txt", "a")
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(RunError, match=r"no run wrote \(notes.md\)"), start(tmp_path, overwrite=overwrite):
        pass
    assert files(tmp_path) == {"manifest.json", "a.txt", "notes.md"}


def test_a_foreign_manifest_is_no_run(tmp_path):
    (tmp_path / "manifest.json").write_text('{"format": "web app"}')
    with pytest.raises(RunError, match="no run folder"), start(tmp_path, overwrite=True):
        pass
    (tmp_path / "manifest.json").write_text('{"format": "isotrace-run", "format_version": 99}')
    with pytest.raises(RunError, match="format 99"):
        read_manifest(tmp_path)


def test_a_folder_that_cannot_be_made_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(RunError, match="choose another --out"), start(path):
            pytest.fail("the work started")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused_before_any_work(tmp_path):
    tmp_path.chmod(0o500)
    for path in (tmp_path, tmp_path / "run"):
        with pytest.raises(RunError, match="choose another --out"), start(path):
            pytest.fail("the work started")


def test_a_failure_is_recorded_and_goes_on(tmp_path):
    with pytest.raises(ZeroDivisionError), start(tmp_path) as run:
        run.text("a.txt", "a")
        raise ZeroDivisionError("no")
    manifest = read_manifest(tmp_path)
    assert (manifest["status"], manifest["error"]) == ("failed", "ZeroDivisionError: no")
    assert list(manifest["files"]) == ["a.txt"]
    assert manifest["wall_seconds"] >= 0


def test_what_others_write_is_expected_and_then_adopted(tmp_path):
    with start(tmp_path) as run:
        run.expect("a.bin", "b.bin")
        assert read_manifest(tmp_path)["files"] == {"a.bin": None, "b.bin": None}
        (tmp_path / "a.bin").write_bytes(b"abc")
        run.adopt("a.bin", "b.bin")
    assert read_manifest(tmp_path)["files"] == {"a.bin": sha256_file(tmp_path / "a.bin")}


def test_a_run_that_goes_on_keeps_what_it_has(tmp_path):
    with start(tmp_path) as run:
        run.text("a.txt", "a")
    with start(tmp_path, resume=True) as run:
        assert files(tmp_path) >= {"a.txt"}
        run.text("b.txt", "b")
    assert read_manifest(tmp_path)["files"].keys() == {"a.txt", "b.txt"}
    with pytest.raises(RunError, match="no run folder"), start(tmp_path / "other", resume=True):
        pytest.fail("there was nothing to go on with")


def test_a_full_disk_leaves_the_old_file_whole(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(RunError, match=r"cannot write .*big\.bin") as caught, start(tmp_path) as run:
        run.bytes("big.bin", b"small")
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # the kernel refuses longer files, as a full disk
        try:
            run.bytes("big.bin", b"0" * 100_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert files(tmp_path) == {"manifest.json", "big.bin"}
    assert (tmp_path / "big.bin").read_bytes() == b"small"
    assert read_manifest(tmp_path)["status"] == "failed"


def test_a_killed_run_can_be_taken_up(tmp_path):
    script = (
        "import os, sys\nfrom isotrace.base.runs import open_run\n"
        "with open_run(sys.argv[1], command='c', seed=0, inputs={}, overwrite=False) as run:\n"
        "    run.text('a.txt', 'a')\n    os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert read_manifest(tmp_path)["status"] == "running"
    (tmp_path / ".isotrace-x.tmp").touch()  # what a kill between write and rename leaves
    with start(tmp_path, command="c"):
        pass
    assert read_manifest(tmp_path)["status"] == "complete"


@pytest.mark.parametrize("name", ["../a.txt", "cards/../../a.txt", "/a.txt", "manifest.json"])
def test_a_run_writes_only_its_own_files(tmp_path, name):
    with pytest.raises(RunError, match="no file name a run can use"), start(tmp_path / "run") as run:
        run.text(name, "")
    assert files(tmp_path) == {"run/manifest.json"}


@dataclass(frozen=True)
class Point:
    x: float
    where: Path


class Colour(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        ([math.nan, math.inf, -math.inf, 0.5], [None, None, None, 0.5]),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1.0, np.nan]]), [[1.0, None]]),
        (torch.tensor(2), 2),
        (torch.tensor([1.0, math.inf], dtype=torch.bfloat16, requires_grad=True), [1.0, None]),
        (Point(math.nan, Path("a/b")), {"x": None, "where": "a/b"}),
        ({1: (2, 3), np.int64(2): {"b", "a"}}, {"1": [2, 3], "2": ["a", "b"]}),
        ({Colour.RED: date(2026, 1, 2)}, {"red": "2026-01-02"}),
    ],
)
def test_to_jsonable(obj, expected):
    plain = to_jsonable(obj)
    assert plain == expected
    assert type(plain) is type(expected)
    assert json.loads(dumps(obj)) == expected


def test_json_keeps_the_order_of_keys_and_refuses_what_has_no_form():
    assert dumps({"b": 1, "a": "σ"}) == '{"b": 1, "a": "σ"}'
    for obj in (b"bytes", 1j, object(), pl.DataFrame(), Point, {1.5: 0}, {None: 0}):
        with pytest.raises(TypeError):
            to_jsonable(obj)


def test_names_that_are_no_utf_8_are_written_and_read_back(tmp_path):
    name = os.fsdecode(b"caf\xe9.smi")
    with start(tmp_path, command=f"isotrace trace {name}", inputs={"data": name}) as run:
        run.json("x", {"file": name})
        run.text("page.html", name)
    assert read_manifest(tmp_path)["command"].endswith(name)
    assert json.loads((tmp_path / "x.json").read_text()) == {"file": name}
    assert (tmp_path / "page.html").read_text() == r"caf\udce9.smi"
