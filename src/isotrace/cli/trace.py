"""isotrace trace: why did the subject say so?"""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems
from isotrace.verbs.trace import TraceRequest, trace


def show(summary: dict[str, Any], request: TraceRequest) -> None:
    if "traces" not in summary:
        from isotrace.report.trace.trace import described

        typer.echo("\n".join(described(summary)))
        if request.out is not None:
            typer.echo(f"report: {request.out / 'report.html'}")
        return
    typer.echo(f"{len(summary['traces'])} traced, {len(summary['rejects'])} rejected")
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"report: {request.out / 'summary' / 'report.html'}")


command = command_of(trace, show, saves=True)
