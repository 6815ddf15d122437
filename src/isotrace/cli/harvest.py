"""isotrace harvest: write activations to a sharded store, to train from many times."""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems
from isotrace.verbs.harvest import HarvestRequest, harvest


def show(summary: dict[str, Any], request: HarvestRequest) -> None:
    rows = f"{summary['tokens']:,} {summary['rows']}"
    what = f"{rows} of {len(summary['hookpoints'])} hookpoints in {summary['shards']} shards"
    typer.echo(f"{summary['folder']}: {what}")
    show_problems(summary, request)


command = command_of(harvest, show)
