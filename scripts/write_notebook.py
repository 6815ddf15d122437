"""Run an example and write it as a notebook with its outputs: `python scripts/write_notebook.py`.

An example is a script whose cells begin with `# %%`. The notebook holds the same cells, what they print, and the text
and HTML of a last expression, as Jupyter would keep them; nothing else.
"""

import ast
import contextlib
import io
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[1] / "examples" / "trace_a_molecule.py"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def cells_of(script: str) -> list[dict[str, Any]]:
    """Cells without outputs, of a script that begins with one."""
    cells = []
    for place, (head, body) in enumerate(re.findall(r"^# %%(.*)\n((?:(?!# %%).*\n?)*)", script, flags=re.MULTILINE)):
        text = body.strip("\n")
        cell = {"id": f"cell-{place}", "metadata": {}}
        if head.strip() == "[markdown]":
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
            cells.append(cell | {"cell_type": "markdown", "source": text.splitlines(keepends=True)})
        else:
            code = {"cell_type": "code", "execution_count": None, "outputs": []}
            cells.append(cell | code | {"source": text.splitlines(keepends=True)})
    return cells


def run(cells: list[dict[str, Any]]) -> None:
    """Run the code cells in one namespace, in a folder that is thrown away, and fill in their outputs."""
    names: dict[str, Any] = {"__name__": "__main__"}
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for count, cell in enumerate(code, start=1):
            tree, printed = ast.parse("".join(cell["source"])), io.StringIO()
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            with contextlib.redirect_stdout(printed):
                exec(compile(tree, "cell", "exec"), names)
                value = None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)
            outputs = []
            if printed.getvalue():
                text = printed.getvalue().splitlines(keepends=True)
                outputs.append({"output_type": "stream", "name": "stdout", "text": text})
            if value is not None:
                data = {"text/plain": repr(value).splitlines(keepends=True)}
                if (html := getattr(value, "_repr_html_", lambda: None)()) is not None:
                    data["text/html"] = html.splitlines(keepends=True)
                outputs.append(
                    {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}
                )
            cell |= {"execution_count": count, "outputs": outputs}


def notebook(cells: list[dict[str, Any]]) -> str:
    record = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(record, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cells = cells_of(EXAMPLE.read_text(encoding="utf-8"))
    run(cells)
    target = EXAMPLE.with_suffix(".ipynb")
    target.write_text(notebook(cells), encoding="utf-8")
    print(f"{target.name}: {len(cells)} cells, {target.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
