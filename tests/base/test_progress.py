"""Progress is shown where somebody watches: on a terminal, in a notebook's cell, and nowhere else unasked."""

import io
import sys
from types import SimpleNamespace

import pytest

import isotrace
import tiny
from isotrace.base import progress as module
from isotrace.base.progress import in_notebook, progress, shown, silent, waiting


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def notebook(monkeypatch):
    """The lines of a cell, in the order of showing: IPython as a kernel has it, as far as it is used."""
    lines = []
    handle = SimpleNamespace(update=lambda data, raw: lines.append(data["text/plain"]))

    def display(data, raw, display_id):
        lines.append(data["text/plain"])
        return handle

    shell = SimpleNamespace(kernel=object())
    fake = SimpleNamespace(get_ipython=lambda: shell, display=SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython", fake)
    monkeypatch.setitem(sys.modules, "IPython.display", fake.display)
    return lines


def test_it_is_shown_where_somebody_watches(monkeypatch, notebook):
    mine = lambda items, label: items  # noqa: E731
    assert shown(mine) is mine
    assert shown(True) is progress
    assert shown(False) is silent
    assert shown(None) is progress
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", SimpleNamespace)  # IPython in a terminal has no kernel
    assert not in_notebook()
    assert shown(None) is silent
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert shown(None) is progress


def test_a_cell_holds_one_line_in_the_end_how_long_it_took(notebook, monkeypatch):
    times = iter([0.0, 0.1, 1.1, 1.2, 9.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(times))
    assert [*progress("abcd", "tracing")] == [*"abcd"]
    assert notebook == ["tracing: 0 of 4", "tracing: 2 of 4, 0:01 left", "tracing: 4 in 0:09"]


def test_a_terminal_says_what_it_waits_for_until_the_first_bar(monkeypatch):
    err = Terminal()
    monkeypatch.setattr(sys, "stderr", err)
    with waiting("isotrace trace: loading") as begun:
        assert err.getvalue() == "isotrace trace: loading"
        assert [*begun([1, 2], "tracing")] == [1, 2]
    assert err.getvalue().startswith("isotrace trace: loading\r\x1b[2K")
    assert err.getvalue().count("\r\x1b[2K") >= 1
    silent_err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", silent_err)
    with waiting("isotrace trace: loading"):
        pass
    assert silent_err.getvalue() == ""


def test_a_trace_tells_of_its_steps_and_says_nothing_unasked(rotary, capsys):
    dictionary, told = tiny.random_dictionary(rotary), []

    def watch(items, label):
        told.append((label, len(items)))
        for item in items:
            told.append(item)
            yield item

    quick = {"nodes": 4, "controls": 2, "spellings": 0}
    found = isotrace.trace(rotary, dictionary, "CCO", "mask:2", progress=watch, **quick)
    assert told == [("tracing", 6), 0, 1, 2, 3, 4, 5]
    assert isotrace.trace(rotary, dictionary, "CCO", "mask:2", **quick) == found
    assert capsys.readouterr().err == ""


def test_help_lists_every_option_of_a_verb():
    text = isotrace.trace.__doc__
    lines = text.splitlines()
    assert lines[0].startswith("Trace one prediction")
    assert not any(line.startswith(" ") for line in lines)
    names = [*isotrace.trace.__signature__.parameters]
    listed = [line.partition(":")[0] for line in lines if line.partition(":")[0] in names]
    assert listed == names
    assert names[:4] == ["subject", "dictionary", "data", "target"]
