"""Every example runs as a script, on what is bundled, and opens as a notebook."""

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_runs(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(example), run_name="__main__")
    assert capsys.readouterr().out.count("\n") > 1


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_it_is_a_notebook(example):
    """Cells begin with `# %%`, the first says what it is about, and text cells hold nothing but comments."""
    before, *cells = re.split(r"^(?=# %%)", example.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert not before
    assert re.match(r"# %% \[markdown\]\n# # [A-Z]", cells[0])
    for cell in cells:
        head, _, body = cell.partition("\n")
        assert head in ("# %%", "# %% [markdown]")
        if head.endswith("[markdown]"):
            assert all(line.startswith("#") for line in body.split("\n") if line)
        else:
            compile(body, example.name, "exec")


def test_there_are_examples():
    assert EXAMPLES
