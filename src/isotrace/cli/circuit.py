"""isotrace circuit: which features does a task rest on, and can they do it alone?"""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems, show_table
from isotrace.verbs.circuit import CircuitRequest, circuit

COLUMNS = ("features", "share", "free-running [95 % CI]", "random", "neurons", "teacher-forced")


def show(summary: dict[str, Any], request: CircuitRequest) -> None:
    """Circuits of rising size beside their controls."""
    metric = summary["task_metric"]
    title = f"{summary['task']['label']}: {metric['name']} {metric['subject']:.3f} (chance {metric['chance']:.3f})"
    rows = [
        (str(one["n"]), f"{one['fraction']:.2%}", share(one["free_running"]), share(one["random"], "mean"),
         share(one["neurons"]), share(one["teacher_forced"]))
        for one in summary["sweep"]
    ]  # fmt: skip
    show_table(title, COLUMNS, rows, width=120, right=COLUMNS)
    low, fall = metric["subject_ci"][0], summary["necessity"]
    if low is not None and low > metric["chance"]:  # else there are no shares, as a warning says
        for level, chosen in summary["chosen"].items():
            said = "no circuit keeps them there"
            if chosen is not None:
                said = f"{chosen['n']} features, which keep {share(chosen['free_running'])} on the report part"
            typer.echo(f"chosen on the discovery part to keep {level} % of the metric above chance: {said}")
        typer.echo(
            f"without {fall['n']} features the metric above chance falls by {share(fall, 'fall')}, "
            f"without as many random ones by {share(fall['random'], 'mean')}"
        )
    show_problems(summary, request)
    typer.echo(f"report: {request.out}/report.html")


def share(entry: dict[str, Any], key: str = "sufficiency") -> str:
    """`value [low, high]`; – where there is none."""
    value, low, high = ("–" if v is None else f"{v:.2f}" for v in (entry[key], *entry["ci"]))
    return f"{value} [{low}, {high}]"


command = command_of(circuit, show, saves=True)
