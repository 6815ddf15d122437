"""isotrace train: learn a dictionary of features."""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems
from isotrace.verbs.train import TrainRequest, train


def show(summary: dict[str, Any], request: TrainRequest) -> None:
    for one in summary["dictionaries"]:
        fve = sum(one["fve"]) / len(one["fve"])
        typer.echo(
            f"{one['folder']}: {one['architecture']} {one['activation']}, {one['n_features']} features per layer, "
            f"FVE {fve:.3f}, L0 {one['l0']:.1f}, dead {one['dead']:.1%} after {one['tokens']:,} tokens "
            f"({one['tokens_per_s']:,.0f} per second)"
        )
    show_problems(summary, request)


command = command_of(train, show)
