"""Every example runs as a script, on what is bundled, and opens as a notebook."""

import json
import re
import runpy
from pathlib import Path

import pytest

import write_notebook

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


NOTEBOOK = write_notebook.EXAMPLE.with_suffix(".ipynb")


def test_the_notebook_is_its_script_run():
    """The same cells, every one of code run once in order, outputs as small as what a notebook shows; no widgets."""
    kept = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (kept["nbformat"], kept["metadata"]) == (4, write_notebook.METADATA)
    bare = [{**cell, "outputs": [], "execution_count": None} for cell in kept["cells"] if cell["cell_type"] == "code"]
    fresh = write_notebook.cells_of(write_notebook.EXAMPLE.read_text(encoding="utf-8"))
    assert [c["source"] for c in kept["cells"]] == [c["source"] for c in fresh], "run scripts/write_notebook.py"
    assert bare == [cell for cell in fresh if cell["cell_type"] == "code"]
    code = [cell for cell in kept["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == [*range(1, len(code) + 1)]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert any("<svg" in "".join(output.get("data", {}).get("text/html", "")) for output in outputs)
    assert NOTEBOOK.stat().st_size < 60_000
    assert " at 0x" not in NOTEBOOK.read_text(encoding="utf-8")


def test_cells_are_run_in_one_namespace_and_keep_what_they_show():
    cells = write_notebook.cells_of("# %% [markdown]\n# # A title\n#\n# text\n\n# %%\nx = 2\nprint(x)\n\n# %%\nx + 1\n")
    write_notebook.run(cells)
    assert "".join(cells[0]["source"]) == "# A title\n\ntext"
    assert cells[1]["outputs"] == [{"output_type": "stream", "name": "stdout", "text": ["2\n"]}]
    assert cells[2]["outputs"][0]["data"] == {"text/plain": ["3"]}
    assert [cell.get("execution_count") for cell in cells] == [None, 1, 2]
    with pytest.raises(ZeroDivisionError):
        write_notebook.run(write_notebook.cells_of("# %%\n1 / 0\n"))
