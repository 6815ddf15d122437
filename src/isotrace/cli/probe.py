"""isotrace probe: does the subject know a property, and the probe that reads it."""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems, show_table
from isotrace.verbs.probe import ProbeRequest, fit_probe

SAID = {
    "subject": "the subject",
    "untrained": "an untrained copy",
    "tokens": "token counts",
    "forest": "forest on fingerprints",
    "constant": "always the mean",
}


def show(summary: dict[str, Any], request: ProbeRequest) -> None:
    from isotrace.report.page import interval, number  # which takes RDKit

    n, metrics = summary["n"], summary["metrics"]
    title = f"{summary['label']}: {n['rows']:,} {summary['rows_are']} in {n['groups']:,} groups, {summary['split']}"
    rows = [
        (SAID[source], *(f"{number(row[m]['value'])} {interval(row[m]['ci'])}" if m in row else "" for m in metrics))
        for source, row in summary["performance"].items()
    ]
    show_table(title, ("", *(f"{m} [95 % CI]" for m in metrics)), rows, width=None)
    typer.echo(summary["verdict"])
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"report: {request.out / 'report.html'}")
        typer.echo(f"explain a prediction: isotrace trace {request.subject} DICTIONARY … --target probe:{request.out}")


command = command_of(fit_probe, show, saves=True)
