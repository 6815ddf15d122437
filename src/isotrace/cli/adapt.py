"""isotrace adapt: a subject made to predict a property of one's own."""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems, show_table
from isotrace.verbs.adapt import AdaptRequest, adapt


def show(summary: dict[str, Any], request: AdaptRequest) -> None:
    from isotrace.report.page import interval, number  # which takes RDKit

    n = summary["n"]
    for label in summary["labels"]:
        rows = [row for row in summary["table"] if row["label"] == label]
        metrics = list(rows[0]["metrics"])
        title = f"{label}: {n['train']:,} sequences to learn from, {n['valid']:,} to stop by, {n['test']:,} held out"
        cells = [
            (
                row["method"],
                *(f"{number(row['metrics'][m]['value'])} {interval(row['metrics'][m]['ci'])}" for m in metrics),
                "" if row["better_by"] is None else number(row["better_by"]["value"]),
                f"{row['seconds']:.0f}",
            )
            for row in rows
        ]
        columns = ("", *(f"{m} [95 % CI]" for m in metrics), f"{summary['method']} better by", "s")
        show_table(title, columns, cells, width=None)
    typer.echo(summary["verdict"])
    for row in (summary["reuse"] or {"labels": {}})["labels"].values():
        typer.echo(row["verdict"])
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"report: {request.out / 'report.html'}")
        typer.echo(f"explain a prediction: isotrace trace {request.out} DICTIONARY … --target {summary['targets'][0]}")


command = command_of(adapt, show, saves=True)
