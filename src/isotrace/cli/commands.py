"""All commands as one Typer application."""

from importlib import import_module

import typer

from isotrace import __version__
from isotrace.base.registry import load_plugin

COMMANDS = (
    *("trace", "probe", "scan", "map", "train", "evaluate", "annotate", "circuit", "features", "steer", "adapt"),
    *("recommend", "transfer", "reproduce", "harvest", "convert", "demo", "doctor", "report", "subjects", "balance"),
)
app = typer.Typer(
    name="isotrace",
    help="Follow one prediction of a scientific language model through its features, back to its atoms.",
    no_args_is_help=True,
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
