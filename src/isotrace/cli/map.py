"""isotrace map: which component carries an answer from its cause, at which positions and in which layers."""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems, show_table
from isotrace.verbs.map import MapRequest, tracing_map

SHOWN = ("cause", "answer", "random span")
"""Classes of positions that the shell shows; the page has all."""


def show(summary: dict[str, Any], request: MapRequest) -> None:
    from isotrace.report.maps import cell_text, injected  # which takes RDKit

    n, layers = summary["n"], range(summary["n_layers"])
    title = f"{summary['target']}: {n['kept']:,} pairs of {n['sequences']:,} sequences, {n['dropped']:,} dropped"
    cells = {(r["component"], r["class"], r["layer"]): r["recovery"] for r in summary["map"] if r["window"] == 1}
    rows = [
        (f"{component}, {name}", *(cell_text(cells[component, name, i]) for i in layers))
        for component, name in dict.fromkeys((component, name) for component, name, _ in cells)
        if name in SHOWN
    ]
    show_table(title, ("recovery, one layer", *map(str, layers)), rows, width=30 + 8 * len(layers))
    typer.echo(summary["verdict"])
    for line in injected(summary["injection"]):
        typer.echo(line)
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"report: {request.out / 'report.html'}")


command = command_of(tracing_map, show, saves=True)
