"""The command line: one thin file per command. Results go to stdout, progress and errors to stderr."""

import os
import sys
from importlib import import_module

import typer

from isotrace import __version__
from isotrace.base.errors import IsotraceError
from isotrace.base.registry import load_plugin

COMMANDS = (
    *("trace", "train", "evaluate", "annotate", "circuit", "features"),
    *("reproduce", "harvest", "convert", "demo", "doctor", "report", "subjects"),
)
app = typer.Typer(
    name="isotrace",
    help="Follow one prediction of a scientific language model through its features, back to its atoms.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for name in COMMANDS:
    app.command(name)(import_module(f"isotrace.cli.{name}").command)


@app.callback(invoke_without_command=True)
def options(
    plugin: list[str] = typer.Option([], help="Module or .py file that registers things of yours; repeatable."),
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit
    for name in plugin:
        load_plugin(name)


def main() -> None:
    """Entry point: an error a user can act on is one line on stderr and an exit code (docs/runs.md)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except IsotraceError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        typer.echo("error: stopped; what was finished is kept.", err=True)
        sys.exit(130)
