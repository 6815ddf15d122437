"""isotrace evaluate: how much of the subject is left when dictionaries stand in for it?"""

from collections.abc import Sequence
from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems, show_table
from isotrace.verbs.evaluate import EvaluateRequest, evaluate

COLUMNS = ("", "L0", "loss recovered [95 % CI]", "teacher-forced", "− first", "top-1", "KL", "FVE", "dead")


def show(summary: dict[str, Any], request: EvaluateRequest) -> None:
    """Dictionaries, then controls."""
    what = {
        "causal": "next tokens", "translating": "next tokens", "classes": "classes", "reconstruction": "decoded tokens",
    }.get(summary["objective"], "masked tokens")  # fmt: skip
    title = f"{summary['subject']}: {summary['n_sequences']} sequences, {summary['n_predicted']} {what}"
    dictionaries = [cells(entry, first=place == 0) for place, entry in enumerate(summary["dictionaries"])]
    controls = [cells(entry, first=False) for entry in summary["controls"]]
    show_table(title, COLUMNS, dictionaries, controls, width=130)
    if len(dictionaries) > 1:
        typer.echo(f"not dominated: {', '.join(summary['pareto']) or 'none'}")
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"report: {request.out / 'report.html'}")


def cells(entry: dict[str, Any], *, first: bool) -> Sequence[str]:
    """One row of the table: a control that does not apply says why."""
    if entry.get("reason"):
        return [entry["name"], "", entry["reason"]]
    free, forced = entry["free_running"], entry["teacher_forced"]
    paired = entry["paired"] and entry["paired"]["free_running"]["loss_recovered"]["difference"]
    fve = None if None in entry["fve"] else sum(entry["fve"]) / len(entry["fve"])
    return [
        entry["name"],
        f"{entry['l0']:.1f}",
        "{} [{}, {}]".format(*(number(n) for n in (free["loss_recovered"], *free["ci"]))),
        number(forced["loss_recovered"]),
        "" if first else number(paired, "+.3f"),
        number(free["top1_agreement"]),
        number(free["kl"]),
        number(fve),
        number(entry["dead_fraction"], ".1%"),
    ]


def number(value: float | None, form: str = ".3f") -> str:
    return "–" if value is None else format(value, form)


command = command_of(evaluate, show)
