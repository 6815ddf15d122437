"""isotrace convert: other tools' dictionaries, read and written."""

from typing import Any

import typer

from isotrace.cli.command import command_of
from isotrace.verbs.convert import ConvertRequest, convert


def show(found: dict[str, Any], request: ConvertRequest) -> None:
    layers = ", ".join(map(str, found["layers"]))
    typer.echo(
        f"{found['source_format']} → {found['target_format']}: {found['architecture']}, {found['activation']}, "
        f"{found['n_features']} features, layers {layers}, {' → '.join(found['hookpoints'])}"
    )
    for note in found["notes"]:
        typer.echo(f"note: {note}")
    typer.echo(
        f"check: read back, features differ by {found['difference_features']:.1e} and output by "
        f"{found['difference_output']:.1e} of their largest value"
    )
    typer.echo(f"written: {found['folder']}")


command = command_of(convert, show)
