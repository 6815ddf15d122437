"""isotrace report: the page of a saved run, made again."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    run: Annotated[Path, typer.Argument(help="Folder that a command wrote, with result.json.")],
    out: Annotated[Path | None, typer.Option(help="File to write; default: report.html in the run.")] = None,
) -> None:
    """Make the page of a saved run again, as this version of isotrace lays it out; nothing is computed."""
    from isotrace.base.errors import RunError
    from isotrace.base.result import Result
    from isotrace.base.runs import read_manifest, rewritten

    html = Result.load(run).page(read_manifest(run))
    if out is None:
        out = rewritten(run, "report.html", html)
    else:
        try:
            out.write_text(html, encoding="utf-8")
        except OSError as error:
            raise RunError(f"cannot write {out} ({error.strerror}): choose another --out.") from None
    typer.echo(str(out))
