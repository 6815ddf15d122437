"""What the command line does where the terminal, the user or the moment is not the usual one."""

import io
import json
import os
import pwd
import signal
import sys

import pytest

import isotrace.cli.commands
from isotrace.base import progress as shown
from isotrace.base.progress import clock, progress
from isotrace.base.settings import LARGEST_SEED
from isotrace.cli import main
from isotrace.cli.command import printable, show_table


def ended(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["isotrace", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
        sys.exit(0)
    return stopped.value.code or 0


@pytest.fixture
def console(monkeypatch):
    """stdout of another encoding, which refuses what it does not have: what was written to it."""

    def made(encoding):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, "stdout", stream)
        return lambda: (stream.flush(), stream.buffer.getvalue().decode(encoding))[1]

    return made


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "shift_jis", "utf-8"])
def test_a_table_is_printed_whatever_the_terminal_can_write(monkeypatch, console, encoding):
    written = console(encoding)

    def app():
        show_table("≥ 0,5 → ①", ("", "− first"), [("α", "1"), ("名", "2")], width=60)

    monkeypatch.setattr(isotrace.cli.commands, "app", app)
    main()
    assert "first" in written()
    assert ("α" in written()) == (encoding in ("utf-8", "shift_jis"))


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_json_says_the_same_in_every_encoding(monkeypatch, console, encoding):
    said = {"unit": "≥ σ", "file": "caf\udce9.smi"}
    written = console(encoding)
    sys.stdout.write(printable(json.dumps(said, ensure_ascii=False)))
    assert json.loads(written()) == said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_stopped_says_so(monkeypatch, capsys, number):
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.setattr(isotrace.cli.commands, "app", lambda: os.kill(os.getpid(), number))
    assert ended(monkeypatch, "doctor") == 130
    assert capsys.readouterr().err == "stopped; what was finished is kept: the same command starts again.\n"
    assert {n: signal.getsignal(n) for n in before} == before


def test_a_stopped_harvest_goes_on_and_says_how(monkeypatch, capsys, tmp_path):
    from isotrace.activations import store

    (tmp_path / "small.smi").write_text("CCO\nCCN\nc1ccccc1\n")
    arguments = ("harvest", "bundled:molm", "--data", tmp_path / "small.smi", "--tokens", 60, "--shard-tokens", 20)
    arguments += ("--layers", "0", "--seed", LARGEST_SEED, "--out")
    with monkeypatch.context() as patch:
        patch.setattr(store, "sha256_file", lambda path: os.kill(os.getpid(), signal.SIGINT))
        assert ended(monkeypatch, *arguments, tmp_path / "h") == 130
    assert "kept: the same command goes on from there.\n" in capsys.readouterr().err
    assert ended(monkeypatch, *arguments, tmp_path / "h") == 0
    assert ended(monkeypatch, *arguments, tmp_path / "whole") == 0
    for shard in (tmp_path / "whole").glob("shard-*"):
        assert shard.read_bytes() == (tmp_path / "h" / shard.name).read_bytes()


def test_a_user_without_a_home_can_list_subjects(monkeypatch, capsys):
    def nobody(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("ISOTRACE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert ended(monkeypatch, "subjects") == 0
    assert "bundled:molm" in capsys.readouterr().out
    assert ended(monkeypatch, "subjects", "pypi:antiberty") == 3
    assert "ISOTRACE_CACHE" in capsys.readouterr().err


def test_training_does_not_read_standard_input(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "stdin", None)
    arguments = ("train", "bundled:molm", "--architecture", "sae", "--data", "-", "--out", tmp_path / "t")
    assert ended(monkeypatch, *arguments) == 2
    assert "standard input" in capsys.readouterr().err
    assert not (tmp_path / "t").exists()


def test_a_log_file_gets_a_line_now_and_then(monkeypatch, capsys):
    assert list(progress(range(5), "tracing")) == list(range(5))
    assert capsys.readouterr().err == ""
    times = iter(range(0, 1_000, 20))
    monkeypatch.setattr(shown.time, "monotonic", lambda: next(times))
    assert list(progress(range(5), "tracing")) == list(range(5))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "tracing: 1 of 5, 2:40 left"
    assert 1 < len(lines) < 5
    assert [clock(seconds) for seconds in (-1, 61.4, 3_723)] == ["0:00", "1:01", "1:02:03"]
