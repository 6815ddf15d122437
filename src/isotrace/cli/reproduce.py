"""isotrace reproduce: compute a published table again."""

from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    name: Annotated[str | None, typer.Argument(help="Name of a study; left out, they are listed.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; runs/NAME if left out.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Full settings (hours) instead of the quick ones.")] = False,
    dictionary: Annotated[
        list[str] | None, typer.Option(help="SUBJECT=FOLDER: a dictionary that is not bundled; repeatable.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace another command's run in --out.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every random choice.")] = 0,
) -> None:
    """Compute one of the tables of the documentation again; quick settings take minutes on two cores."""
    import polars as pl

    from isotrace.base.errors import InputError
    from isotrace.base.progress import command_line, progress
    from isotrace.base.runs import dumps, open_run
    from isotrace.studies import STUDIES, Setting

    if name is None:
        for known in STUDIES.values():
            typer.echo(f"{known.name}: {known.about}")
        return
    chosen = STUDIES[name]
    given = [text.partition("=") for text in dictionary or []]
    if wrong := [source for source, _, folder in given if not folder]:
        raise InputError(f"--dictionary {wrong[0]!r}: give SUBJECT=FOLDER.")
    folder = out or Path("runs") / name
    with open_run(folder, command=command_line(), seed=seed, inputs={"study": name}, overwrite=overwrite) as run:
        setting = Setting(
            quick=not full,
            work=folder.with_name(f"{folder.name}.work"),
            seed=seed,
            progress=lambda items, text: progress(list(items), text),
            dictionaries={source: where for source, _, where in given},
        )
        setting.work.mkdir(parents=True, exist_ok=True)
        outcome = chosen.run(setting)
        for title, rows in outcome.tables.items():
            flat = [{key: _cell(value) for key, value in row.items()} for row in rows]
            run.table(title, pl.DataFrame(flat, infer_schema_length=None))
        run.json("study", {"name": name, "quick": not full, "tables": outcome.tables, "notes": outcome.notes})
    if json:
        typer.echo(dumps({"name": name, "quick": not full, "tables": outcome.tables, "notes": outcome.notes}))
        return
    for title, rows in outcome.tables.items():
        show(title, rows)
    for note in outcome.notes:
        typer.echo(f"note: {note}")


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """A table in the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ():
        table.add_column(name)
    for row in rows:
        table.add_row(
            *(str(_cell(value)) if not isinstance(value, float) else f"{value:.3g}" for value in row.values())
        )
    Console(width=160).print(table)


def _cell(value: Any) -> Any:
    """Intervals and other lists as text, for tables of one value per cell."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in value) + "]"
    return value
