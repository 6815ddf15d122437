"""isotrace trace: why did the subject say so?"""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems, show_table
from isotrace.verbs.trace import TraceRequest, trace

MOST = 25


def show(summary: dict[str, Any], request: TraceRequest) -> None:
    if request.quick:
        show_screen(summary, request)
        return
    many = next((name for name in ("traces", "pairs") if name in summary), None)
    if many is None:
        if request.against is None:
            from isotrace.report.trace.trace import described
        else:
            from isotrace.report.pair.pair import described

        typer.echo("\n".join(described(summary)))
        if request.out is not None:
            typer.echo(f"report: {request.out / 'report.html'}")
        return
    typer.echo(
        f"{len(summary[many])} {'traced' if many == 'traces' else 'compared'}, {len(summary['rejects'])} rejected"
    )
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"report: {request.out / 'summary' / 'report.html'}")


def show_screen(summary: dict[str, Any], request: TraceRequest) -> None:
    from isotrace.domains.domain import domain_of  # which takes RDKit, as the next do
    from isotrace.report.page import interval, number
    from isotrace.report.trace.substructures import words

    unit, named = summary["target"]["unit"], words(summary)
    rows = [
        (row["substructure"], str(row["molecules"]), *(
            f"{number(row[key])} {interval(row[f'{key}_ci'])}" for key in ("beyond", "effect", "random")))
        for row in summary["substructures"][:MOST]
    ]  # fmt: skip
    title = f"{summary['target']['description']}: {summary['n_molecules']} {named['things']}"
    columns = (
        "substructure",
        named["things"],
        f"beyond random {named['elements']}, {unit} [95 % CI]",
        "it hidden",
        "random hidden",
    )
    if domain_of(summary["domain"]).substructures:
        show_table(title, columns, rows, width=None)
    else:
        typer.echo(f"{title}. The domain {summary['domain']} names no substructures to hide.")
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"report: {request.out / 'report.html'}")


command = command_of(trace, show, saves=True)
