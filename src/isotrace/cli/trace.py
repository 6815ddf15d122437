"""isotrace trace: why did the subject say so?"""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems
from isotrace.verbs.trace import TraceRequest, trace


def show(summary: dict[str, Any], request: TraceRequest) -> None:
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


command = command_of(trace, show, saves=True)
