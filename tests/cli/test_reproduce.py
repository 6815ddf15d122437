"""`isotrace reproduce`: listing, running, what a run folder then holds. The studies themselves are tested with what
they measure; here one of two rows stands for them."""

import json
import sys

import polars as pl
import pytest

from isotrace.base.errors import InputError, SubjectError
from isotrace.base.result import Result
from isotrace.base.runs import read_manifest
from isotrace.cli import main
from isotrace.report.lines import lines_svg
from isotrace.studies import STUDIES, Outcome, Setting, bundled_table, study
from isotrace.studies.study import Line, Plot
from isotrace.studies.task_circuits import TASKS, dictionary_for, table_of


def run(*arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["isotrace", "reproduce", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return stopped.value.code


@pytest.fixture
def halves():
    """A study of two rows."""

    @study("halves", "what half of a number is")
    def compute(setting: Setting) -> Outcome:
        numbers = setting.progress([1, 2] if setting.quick else [1, 2, 3], "halving")
        rows = [{"n": n, "half": n / 2, "half_ci": [n / 4, float(n)]} for n in numbers]
        n, half = [row["n"] for row in rows], [row["half"] for row in rows]
        lines = Line("computed", n, half, [h / 2 for h in half], [2 * h for h in half], dots=True), Line("n/2", n, half)
        plots = (Plot("halves of numbers", "n", "half", lines, "both agree"),)
        return Outcome({"halves": rows}, ("intervals are made up",), plots)

    yield
    STUDIES.remove("halves")


def test_every_study_is_listed(monkeypatch, capsys):
    assert not run(monkeypatch=monkeypatch)
    listed = [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [*STUDIES]
    assert {"planted", "head_screening", "approximations", "edge_methods", "network"} <= {*listed}
    assert {f"circuit_{name}" for name in TASKS} <= {*listed}


def test_an_unknown_study_names_the_others(monkeypatch, capsys):
    assert run("nothing", monkeypatch=monkeypatch) == InputError.exit_code
    assert "no study 'nothing'" in capsys.readouterr().err
    with pytest.raises(InputError, match="planted"):
        STUDIES["nothing"]


@pytest.mark.parametrize("full", [False, True])
def test_tables_notes_and_manifest_are_written(halves, tmp_path, monkeypatch, capsys, full):
    out = tmp_path / "run"
    assert not run("halves", "--out", out, "--json", *(["--full"] if full else []), monkeypatch=monkeypatch)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((out / "study.json").read_text())
    assert printed["quick"] is not full
    assert [row["half"] for row in printed["tables"]["halves"]] == [0.5, 1.0, 1.5][: 2 + full]
    assert pl.read_parquet(out / "halves.parquet")["half_ci"][0] == "[0.25, 1]"
    assert read_manifest(out)["status"] == "complete"
    page = (out / "report.html").read_text()
    assert "[0.25, 1]" in page
    assert "intervals are made up" in page
    assert page.count("<svg ") == 1
    assert "both agree" in page
    assert Result.load(out).page(read_manifest(out)) == page


def test_values_that_are_no_number_are_not_drawn():
    nan = float("nan")
    line = {"name": "a", "x": [0, 1, 2], "y": [1.0, nan, 3.0], "low": [0.5, nan, nan], "high": None, "dots": True}
    plot = {"title": "t", "x": "x", "y": "y", "lines": [line]}
    assert lines_svg(plot).count("<circle") == 2  # one place, and the legend
    assert "no value is a number" in lines_svg(plot | {"lines": [line | {"y": [nan] * 3}]})


def test_tables_are_shown(halves, tmp_path, monkeypatch, capsys):
    assert not run("halves", "--out", tmp_path / "run", monkeypatch=monkeypatch)
    shown = capsys.readouterr().out
    assert "note: intervals are made up" in shown
    assert "half_ci" in shown


def test_a_dictionary_is_given_as_subject_and_folder(halves, tmp_path, monkeypatch, capsys):
    code = run("halves", "--dictionary", "nowhere", "--out", tmp_path / "run", monkeypatch=monkeypatch)
    assert code == InputError.exit_code
    assert "SUBJECT=FOLDER" in capsys.readouterr().err


def test_full_settings_want_the_published_dictionary(tmp_path, rotary):
    setting = Setting(quick=False, work=tmp_path, seed=0, progress=lambda items, _: items, dictionaries={})
    with pytest.raises(SubjectError, match="give --dictionary"):
        dictionary_for(TASKS["reaction_class"], rotary, data=None, setting=setting)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("name", TASKS)
def test_the_bundled_tables_hold_the_labels(name):
    table = table_of(TASKS[name])
    assert table.height > 500
    assert table["sequence"].null_count() == 0
    assert table[TASKS[name].label].n_unique() > 1


def test_labels_keep_their_leading_zeros():
    table = bundled_table("antibodies")
    assert (table["paratope"].str.len_chars() == table["sequence"].str.len_chars()).all()
    assert set("".join(table["paratope"])) == {"0", "1"}


def test_what_a_study_kept_on_the_way_goes_with_its_end(tmp_path, monkeypatch):
    broken = [True]

    @study("halves", "what half of a number is")
    def compute(setting: Setting) -> Outcome:
        (setting.work / "half.txt").write_text("0.5")
        if broken.pop():
            raise InputError("no half: take another number.")
        return Outcome({"halves": [{"n": 1}]}, ())

    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    try:
        assert run("halves", "--out", ".", monkeypatch=monkeypatch) == InputError.exit_code
        assert (tmp_path / "run.work" / "half.txt").exists()
        broken.append(False)
        assert not run("halves", "--out", ".", monkeypatch=monkeypatch)
        assert {path.name for path in tmp_path.iterdir()} == {"run"}
        (tmp_path / "run.work").mkdir()  # somebody else's
        broken.append(False)
        assert not run("halves", "--out", ".", monkeypatch=monkeypatch)
        assert (tmp_path / "run.work" / "half.txt").exists()
    finally:
        STUDIES.remove("halves")
