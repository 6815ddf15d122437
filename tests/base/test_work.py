"""Folders that are claimed: by one process at a time, and only what was written there is read or removed."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from isotrace.base import work as room
from isotrace.base.errors import RunError
from isotrace.base.files import locked, write_whole
from isotrace.base.runs import open_run, read_manifest
from isotrace.base.work import Memo, claimed, remove

RUN = {"command": "c", "seed": 0, "inputs": {}, "overwrite": False}
HOLD = """
import sys
from isotrace.base.runs import open_run
with open_run(sys.argv[1], command="c", seed=0, inputs={}, overwrite=False) as run:
    run.text("a.txt", "first")
    print("open", flush=True)
    sys.stdin.readline()
    run.text("b.txt", "first")
"""


def names(folder):
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def holding(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    return process


def test_a_second_process_in_a_run_folder_is_refused(tmp_path):
    """The same command twice at once: before, the second removed the first one's files."""
    first = holding(tmp_path)
    for resume in (False, True):
        with pytest.raises(RunError, match=rf"in use by process {first.pid} on .* since \d{{4}}-"):
            open_run(tmp_path, **RUN, resume=resume).__enter__()
    assert read_manifest(tmp_path)["status"] == "running"
    first.communicate("go on\n", timeout=60)
    assert first.returncode == 0
    manifest = read_manifest(tmp_path)
    assert (manifest["status"], set(manifest["files"])) == ("complete", {"a.txt", "b.txt"})
    assert names(tmp_path) == {"manifest.json", "a.txt", "b.txt"}


def test_a_killed_process_leaves_no_lock(tmp_path):
    first = holding(tmp_path)
    first.send_signal(signal.SIGKILL)
    first.wait()
    with open_run(tmp_path, **RUN) as run:
        run.text("c.txt", "second")
    assert names(tmp_path) == {"manifest.json", "c.txt"}
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdin.close()
    first.stdout.close()


def test_one_process_holds_a_folder_once(tmp_path):
    with (
        open_run(tmp_path, **RUN),
        pytest.raises(RunError, match=f"in use by process {os.getpid()} "),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass
    assert names(tmp_path) == {"manifest.json"}


def test_writing_never_touches_the_process_umask(tmp_path, monkeypatch):
    """Another thread's files would be world-writable meanwhile."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    mode = write_whole(tmp_path / "whole", b"").stat().st_mode
    (tmp_path / "plain").write_bytes(b"")
    assert mode == (tmp_path / "plain").stat().st_mode


def test_a_write_that_fails_leaves_what_stood_there(tmp_path):
    write_whole(tmp_path / "a", b"old")

    def broken(file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match="No space left"):
        write_whole(tmp_path / "a", broken)
    assert names(tmp_path) == {"a"}
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_folder_with_a_thesis_is_refused_and_stays(tmp_path):
    folder = tmp_path / "atlas.work"
    (folder / "chapters").mkdir(parents=True)
    for name in ("thesis.txt", "chapters/one.txt"):
        (folder / name).write_text("mine")
    with pytest.raises(RunError, match=r"not isotrace's \(chapters/one.txt\)"), claimed(folder):
        pytest.fail("the work started")
    assert names(folder) == {"thesis.txt", "chapters/one.txt"}
    remove(folder)
    assert names(folder) == {"thesis.txt", "chapters/one.txt"}


def test_only_what_was_written_is_removed(tmp_path):
    with claimed(tmp_path / "w", "key") as work:
        work.arrays("a.npz", {"x": np.arange(3)})
    (tmp_path / "w" / "notes.md").write_text("mine")
    (tmp_path / "outside.txt").write_text("mine")
    with (tmp_path / "w" / ".isotrace-work").open("a") as ledger:
        ledger.write("../outside.txt\n")
    with pytest.raises(RunError, match=r"notes\.md"), claimed(tmp_path / "w", "key"):
        pass
    remove(tmp_path / "w")
    assert names(tmp_path) == {"w/notes.md", "outside.txt"}


def test_work_of_another_key_or_version_is_not_used(tmp_path, monkeypatch):
    with claimed(tmp_path, ["key", 1]) as work:
        work.arrays("a.npz", {"x": np.arange(3)})
    with claimed(tmp_path, ["key", 1]):
        assert "a.npz" in names(tmp_path)
    with claimed(tmp_path, ["key", 2]) as work:
        assert "a.npz" not in names(tmp_path)
        work.arrays("a.npz", {"x": np.arange(3)})
    monkeypatch.setattr(room, "__version__", "another")
    with claimed(tmp_path, ["key", 2]):
        assert "a.npz" not in names(tmp_path)


def test_a_memo_of_another_version_or_of_other_things_is_not_used(tmp_path, monkeypatch):
    with claimed(tmp_path) as work:
        Memo(work, "d")("a", lambda: np.zeros(1))
        assert Memo(work, "d")("a", lambda: np.ones(1)).tolist() == [0]
        assert Memo(work, "e")("a", lambda: np.ones(1)).tolist() == [1]
        assert Memo(work, "d")("b", lambda: np.ones(1)).tolist() == [1]
        monkeypatch.setattr(room, "__version__", "another")
        assert Memo(work, "d")("a", lambda: np.ones(1)).tolist() == [1]


def test_the_work_of_a_run_lasts_until_it_is_complete(tmp_path):
    with pytest.raises(KeyboardInterrupt), open_run(tmp_path, **RUN) as run, claimed(run.work) as work:
        work.arrays("a.npz", {"x": np.arange(3)})
        raise KeyboardInterrupt
    assert ".work/a.npz" in names(tmp_path)
    with open_run(tmp_path, **RUN) as run:
        assert ".work/a.npz" in names(tmp_path)
        run.text("b.txt", "")
    assert names(tmp_path) == {"manifest.json", "b.txt"}
    assert not (tmp_path / ".work").exists()


def test_another_command_does_not_inherit_work_and_foreign_files_in_it_are_refused(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), open_run(tmp_path, **RUN) as run, claimed(run.work) as work:
            work.arrays("a.npz", {"x": np.arange(3)})
            raise KeyboardInterrupt
    with open_run(tmp_path, **RUN | {"command": "other", "overwrite": True}):
        assert names(tmp_path) == {"manifest.json", ".isotrace.lock"}
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match=r"\.work/thesis\.txt"), open_run(tmp_path, **RUN | {"command": "other"}):
        pass
    assert (tmp_path / ".work" / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["../escaped", "../../escaped", "/escaped", "a/../../b", "", ".", ".work", "..\\x"])
def test_a_folder_name_stays_in_the_run(tmp_path, name):
    with open_run(tmp_path / "run", **RUN) as run:
        assert run.folder("seed-1/x") == tmp_path / "run" / "seed-1" / "x"
        with pytest.raises(RunError, match="no file name a run can use"):
            run.folder(name)


def test_threads_that_want_one_folder_get_it_one_at_a_time(tmp_path):
    inside, most, refused = [], [], []

    def enter():
        for _ in range(50):
            try:
                with locked(tmp_path / "shared"):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
            except RunError:
                refused.append(1)

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) + len(refused) == 200
