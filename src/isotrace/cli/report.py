"""isotrace report: the page of a saved run, made again."""

import typer

from isotrace.cli.command import command_of
from isotrace.verbs.report import report

command = command_of(report, lambda summary, _: typer.echo(summary["report"]))
