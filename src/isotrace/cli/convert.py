"""isotrace convert: other tools' dictionaries, read and written."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    source: Annotated[
        list[str], typer.Argument(help="Folder or file; several become one dictionary over several layers.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="isotrace, saelens, sparsify, clt_training, circuit_tracer or dictionary_learning (docs/convert.md)."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write; it must not exist or be empty.")],
    from_: Annotated[
        str | None, typer.Option("--from", help="Format of the source, where its files do not declare it.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="bundled:molm, hf:org/name or a folder; for --to isotrace.")
    ] = None,
    layer: Annotated[
        list[int] | None, typer.Option(min=0, help="Layer of the subject, from 0; once for each layer read.")
    ] = None,
    hookpoint_in: Annotated[str | None, typer.Option(help="What features read: layers.{}.NAME.")] = None,
    hookpoint_out: Annotated[str | None, typer.Option(help="What features write to: layers.{}.NAME.")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Active features per token, where the files do not say.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the weights written, for --to isotrace.")] = "float32",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")] = False,
) -> None:
    """Convert a dictionary between formats; say what was folded, dropped or assumed, and check the result."""
    from isotrace.base.runs import dumps
    from isotrace.dictionaries.interop import Hints
    from isotrace.dictionaries.interop.converting import convert
    from isotrace.subjects.subject import load_subject

    hints = Hints(tuple(layer or ()), hookpoint_in, hookpoint_out, k)
    loaded = None if subject is None else load_subject(subject)
    result = convert(source, to, out, source_format=from_, hints=hints, subject=loaded, dtype=dtype)
    if json:
        typer.echo(dumps(result.to_dict()))
        return
    layers = ", ".join(map(str, result.layers))
    typer.echo(
        f"{result.source_format} → {result.target_format}: {result.architecture}, {result.activation}, "
        f"{result.n_features} features, layers {layers}, {result.hookpoints[0]} → {result.hookpoints[1]}"
    )
    for note in result.notes:
        typer.echo(f"note: {note}")
    typer.echo(
        f"check: read back, features differ by {result.difference_features:.1e} and output by "
        f"{result.difference_output:.1e} of their largest value"
    )
    typer.echo(f"written: {result.folder}")
