"""isotrace reproduce: compute a published table again."""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_table
from isotrace.verbs.reproduce import ReproduceRequest, reproduce


def show(found: dict[str, Any], request: ReproduceRequest) -> None:
    from isotrace.report.study import cell

    for name, about in found.get("studies", {}).items():
        typer.echo(f"{name}: {about}")
    for title, rows in found.get("tables", {}).items():
        cells = [[f"{v:.3g}" if isinstance(v, float) else str(cell(v)) for v in row.values()] for row in rows]
        show_table(title, [*rows[0]] if rows else [], cells, width=160, right=())
    for note in found.get("notes", ()):
        typer.echo(f"note: {note}")


command = command_of(reproduce, show)
