"""isotrace recommend: which of several checkpoints to take."""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems, show_table
from isotrace.verbs.recommend import RecommendRequest, recommend


def show(summary: dict[str, Any], request: RecommendRequest) -> None:
    from isotrace.report.page import interval, number  # which takes RDKit

    n, metric = summary["n"], summary["metric"]
    title = f"{summary['label']}: {n['rows']:,} rows of {n['groups']:,} groups, each held out once"
    cells = [
        (
            row["name"],
            *("" if row[key] is None else f"{number(row[key]['value'])} {interval(row[key]['ci'])}"
              for key in ("score", "lead", "untrained")),
            f"{row['seconds']:.1f}",
        )
        for row in summary["table"]
    ]  # fmt: skip
    show_table(title, ("", f"{metric} [95 % CI]", "beyond the forest", "untrained copy", "s"), cells, width=None)
    typer.echo(summary["verdict"])
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"report: {request.out / 'report.html'}")


command = command_of(recommend, show, saves=True)
