"""isotrace doctor: is this installation fit for use?"""

from typing import Any

import typer

from isotrace.cli.command import command_of
from isotrace.verbs.doctor import DoctorRequest, doctor


def show(summary: dict[str, Any], request: DoctorRequest) -> None:
    for result in summary["checks"]:
        typer.echo(f"{'ok  ' if result['ok'] else 'FAIL'}  {result['check']}: {result['detail']}")


command = command_of(doctor, show)
