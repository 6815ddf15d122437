"""isotrace transfer: outcomes of checkpoints on tasks, and predictors of them."""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_table
from isotrace.verbs.transfer import TransferRequest, transfer_matrix


def show(summary: dict[str, Any], request: TransferRequest) -> None:
    from isotrace.report.page import interval, number  # which takes RDKit

    n = summary["n"]
    title = f"{n['checkpoints']} checkpoints of {n['families']} families, {n['tasks']} tasks of {n['groups']} groups"
    cells = [
        (
            row["name"], f"{number(row['spearman']['value'])} {interval(row['spearman']['ci'])}",
            number(row["share"]["value"]), f"{number(row['regret_1']['value'])} {interval(row['regret_1']['ci'])}",
            number(row["seconds"]),
        )
        for row in summary["predictors"]
    ]  # fmt: skip
    show_table(title, ("", "Spearman [95 % CI]", "of the ceiling", "regret", "s"), cells, width=None)
    apart = [task["name"] for task in summary["tasks"] if task["apart"]]
    if apart:
        typer.echo(
            f"{len(apart)} tasks whose checkpoints differ by no more than noise are left out: {', '.join(apart)}"
        )
    typer.echo(summary["verdict"])
    typer.echo(f"report: {request.out / 'report.html'}")


command = command_of(transfer_matrix, show)
