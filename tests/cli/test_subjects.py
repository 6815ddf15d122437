"""isotrace subjects: what can be named, and what one of them is."""

import json

import pytest
import typer
from typer.testing import CliRunner

from isotrace.base.errors import SubjectError
from isotrace.cli.subjects import command
from isotrace.subjects.sources.published import SUBJECTS
from isotrace.subjects.sources.pypi import converted_folder
from isotrace.subjects.sources.source import weights_hash
from isotrace.subjects.subject import load_subject

app = typer.Typer()
app.command()(command)


@pytest.fixture
def subjects(tmp_path, monkeypatch):
    """Run the command with an empty cache: its standard output; errors come through."""
    monkeypatch.setenv("ISOTRACE_CACHE", str(tmp_path / "cache"))

    def run(*arguments):
        result = CliRunner().invoke(app, [*map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return run


def test_the_list_names_every_subject(subjects):
    rows = json.loads(subjects("--json"))["subjects"]
    assert [row["source"] for row in rows] == ["bundled:molm", *(s.source for s in SUBJECTS)]
    assert [row["cached"] for row in rows] == [True] + [False] * len(SUBJECTS)
    assert all(set(row) == set(rows[0]) for row in rows)
    table = subjects()
    assert all(row["source"] in table and row["architecture"] in table for row in rows)


def test_a_converted_subject_is_listed_as_cached(subjects):
    folder = converted_folder(SUBJECTS[3])
    folder.mkdir(parents=True)
    (folder / "subject.json").write_text("{}")
    rows = json.loads(subjects("--json"))["subjects"]
    assert [row["source"] for row in rows if row["cached"]] == ["bundled:molm", SUBJECTS[3].source]


def test_the_row_of_a_bundled_subject_is_what_it_is(subjects):
    row = json.loads(subjects("--json"))["subjects"][0]
    loaded = load_subject("bundled:molm")
    assert (row["n_layers"], row["d_model"], row["domain"]) == (loaded.n_layers, loaded.d_model, loaded.files.domain)
    assert row["architecture"] == type(loaded.model).__name__


def test_facts_of_one(subjects, folders):
    facts = json.loads(subjects(folders["bert"], "--domain", "molecule", "--json"))
    loaded = load_subject(folders["bert"])
    assert (facts["family"], facts["n_layers"], facts["d_model"]) == ("bert", loaded.n_layers, loaded.d_model)
    assert (facts["vocabulary"], facts["max_tokens"]) == (loaded.model.config.vocab_size, loaded.max_tokens)
    assert facts["weights_sha256"] == weights_hash(folders["bert"])
    assert (facts["domain"], facts["architecture"]) == ("molecule", "BertForMaskedLM")
    loaded.hookpoint(facts["hookpoints"][0].replace("N", "0"))
    assert f"weights sha256: {facts['weights_sha256']}" in subjects(folders["bert"])


def test_an_unknown_one(subjects):
    with pytest.raises(SubjectError, match="`isotrace subjects` lists"):
        subjects("nothing")
