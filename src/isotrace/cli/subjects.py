"""isotrace subjects: which models can be named, and what one of them is."""

import sys
from typing import Any

import typer

from isotrace.cli.command import command_of, show_table
from isotrace.verbs.subjects import SubjectsRequest, subjects

COLUMNS = ("source", "architecture", "layers × d_model", "domain", "licence", "MB", "cached", "about")


def said(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name} {said(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(value)
    return {True: "yes", False: "no", None: "none"}[value] if value is None or isinstance(value, bool) else str(value)


def show(summary: dict[str, Any], request: SubjectsRequest) -> None:
    if request.source is not None:
        for name, value in summary.items():
            typer.echo(f"{name.replace('_', ' ')}: {said(value)}")
        return
    rows = [
        (
            row["source"],
            row["architecture"],
            f"{row['n_layers']} × {row['d_model']}",
            row["domain"],
            row["licence"],
            f"{row['megabytes']:.1f}",
            "bundled" if row["source"].startswith("bundled:") else "yes" if row["cached"] else "no",
            row["about"],
        )
        for row in summary["subjects"]
    ]
    # A file or a pipe gets whole source strings, however narrow the terminal it was started from.
    show_table(None, COLUMNS, rows, width=None if sys.stdout.isatty() else 200, right=("MB",))


command = command_of(subjects, show)
