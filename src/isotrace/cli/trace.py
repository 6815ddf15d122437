"""isotrace trace: why did the subject say so?"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems
from isotrace.verbs.trace import TraceRequest, trace


def show(summary: dict[str, Any], request: TraceRequest) -> None:
    if "traces" not in summary:
        typer.echo("\n".join(describe(summary, request.out)))
        return
    typer.echo(f"{len(summary['traces'])} traced, {len(summary['rejects'])} rejected")
    show_problems(summary)
    if request.out is not None:
        typer.echo(f"report: {request.out / 'summary' / 'report.html'}")


def describe(summary: dict[str, Any], folder: Path | None) -> Iterable[str]:
    """A trace in a few lines of plain text."""
    target, circuit, checks = summary["target"], summary["circuit"], summary["verification"]
    control = circuit["control"]
    yield f"{summary['input']}  {target['name']} = {target['value']:.3f} {target['unit']}"
    neurons = "" if circuit["neurons"]["error"] is None else f", as many neurons {circuit['neurons']['error']:.2f}"
    yield (
        f"circuit: {circuit['n_features']} features ({circuit['fraction_of_features']:.1%} of the active ones), alone "
        f"{circuit['value']:.2f}: {circuit['error']:.2f} from the model (all features ablated "
        f"{abs(circuit['empty'] - circuit['full']):.2f}, random circuits {control['error_mean']:.2f}{neurons})"
    )
    yield f"without it: {circuit['removed']:.2f} (without random circuits {control['removed_mean']:.2f})"
    yield (
        f"predicted against actual effects: r = {checks['pearson_free_running']:.2f} free-running, "
        f"{checks['pearson_frozen']:.2f} frozen; replacement score {summary['graph']['replacement_score']:.2f}"
    )
    best = sorted(summary["units"], key=lambda u: -u["score"])[:5]
    yield "atoms: " + ", ".join(f"{u['symbol']}{u['index']} {u['score']:.1%}" for u in best)
    for warning in summary["warnings"]:
        yield f"warning: {warning}"
    if folder is not None:
        yield f"report: {folder / 'report.html'}"


command = command_of(trace, show, saves=True)
