"""A command from a verb: the fields of its request are the arguments and options, their docstrings the help."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter, Signature
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
from annotated_types import Ge, Le

from isotrace.base.errors import RunError
from isotrace.base.progress import slug, waiting
from isotrace.base.settings import LARGEST_SEED
from isotrace.cli import Stopped
from isotrace.verbs.request import Request, shell

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

Show = Callable[[dict[str, Any], Any], None]
"""Prints a summary, as `--json` has it, for the eye; the second is the request."""
SHOWN_REJECTS = 3
NAMES = {int: "INTEGER", float: "FLOAT"}
JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def command_of(verb: Callable[..., Any], show: Show, *, saves: bool = False) -> Callable[..., None]:
    """What Typer makes a command of. `saves`: what is not printed as JSON goes to a folder of its own if no --out was
    given."""
    kind: type[Request] = verb.request  # pyright: ignore[reportFunctionMemberAccess]

    def run(**given: Any) -> None:
        as_json = given.pop("json")
        request = kind(**{name: value for name, value in given.items() if value is not None and value != []})
        if saves and not as_json and given["out"] is None:
            request = request.model_copy(update={"out": own_folder(request)})
        try:
            with waiting(f"isotrace {kind.verb()}: loading") as progress:
                answer = verb(request, progress=progress)
        except Stopped as stopped:
            stopped.way_on = request.way_on
            raise
        if answer is None:  # another process of this run reports
            return
        summary = answer.to_dict()
        if as_json:
            from isotrace.base.runs import dumps

            typer.echo(printable(dumps(summary)))
        else:
            show(summary, request)
        if failure := getattr(answer, "failure", None):
            raise RunError(failure)

    # by place, then what is needed or the command has of its own, then what it shares with others
    own = {*vars(kind)["__annotations__"], *(n for n, field in kind.model_fields.items() if field.is_required())}
    order = sorted(kind.model_fields.items(), key=lambda one: 0 if shell(one[1]).place else 1 + (one[0] not in own))
    parameters = [_parameter(name, field) for name, field in order]
    parameters.append(Parameter("json", Parameter.KEYWORD_ONLY, default=False, annotation=JSON))
    run.__signature__ = Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    run.__doc__ = (verb.__doc__ or "").partition("\n\n")[0]
    return run


def printable(text: str) -> str:
    """JSON in ASCII where stdout cannot encode all of it: a character that is replaced would be another value."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return json.dumps(json.loads(text))
    return text


def own_folder(request: Any) -> Path:
    """One for every command, to the letter: what a slug leaves out of a SMILES may be all that two differ in."""
    said = (getattr(request, name, None) for name in ("target", "label"))
    words = " ".join(map(str, (request.verb(), str(request.data)[:40], *filter(None, said))))
    asked = request.command
    if isinstance(request.data, str) and request.data == "-":  # what it holds is not known before it is read
        asked += str(time.time_ns())
    return Path("runs") / f"{slug(words)[:80]}-{hashlib.sha256(os.fsencode(asked)).hexdigest()[:8]}"


def _parameter(name: str, field: "FieldInfo") -> Parameter:
    how, kind, choices = shell(field), field.annotation, ()
    optional = get_origin(kind) in (Union, UnionType)
    kind = next(part for part in get_args(kind) if part is not type(None)) if optional else kind
    if get_origin(kind) is tuple:
        inner = get_args(kind)[0]
        choices = get_args(inner) if get_origin(inner) is Literal else ()
        kind = str if how.commas else list[_plain(inner)]  # pyright: ignore[reportInvalidTypeArguments]
    elif get_origin(kind) is Literal:
        kind, choices = str, get_args(kind)
    else:
        kind = _plain(kind)
    default: Any = Parameter.empty if field.is_required() else field.default
    if isinstance(default, tuple):
        default = ",".join(map(str, default)) if how.commas else None
    shown: dict[str, Any] = {"help": field.description}
    limits = [f">={one.ge}" for one in field.metadata if isinstance(one, Ge)]
    limits += [f"<={one.le}" for one in field.metadata if isinstance(one, Le) and one.le != LARGEST_SEED]
    if choices:
        shown["metavar"] = "|".join(map(str, choices))
    elif limits and kind in (int, float):  # the request refuses others, in one line
        shown["metavar"] = " ".join((NAMES[kind], *limits))
    if default is None:
        kind = kind | None
    if how.place:
        said = typer.Argument(**shown)
    else:
        said = typer.Option(*([how.name] if how.name else []), **shown)
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, said])


def _plain(kind: Any) -> Any:
    """What the shell can give for it: text stands for anything with a name."""
    return kind if kind in (bool, int, float, Path) else str


def show_problems(summary: dict[str, Any], request: Request | None = None) -> None:
    """Warnings, where the command gives any, how many rows were rejected, and why the first ones were. `rejects` may
    hold the first rows only, then `n_rejected` counts all."""
    for warning in summary.get("warnings", ()):
        typer.echo(f"warning: {warning}")
    rejects = summary["rejects"]
    count = summary.get("n_rejected", len(rejects))
    if count > 1:
        typer.echo(f"{count:,} rows rejected")
    for row in rejects[:SHOWN_REJECTS]:
        typer.echo(f"  rejected row {row['index']}: {row['input'][:60]!r}: {row['reason']}")
    if count > SHOWN_REJECTS:
        out = getattr(request, "out", None)
        tables = [out / name for name in ("rejects.parquet", "summary/rejects.parquet")] if out else []
        place = next((f"{table} lists them" for table in tables if table.is_file()), "--json lists them")
        typer.echo(f"  and {count - SHOWN_REJECTS:,} more: {place}")


def show_table(
    title: str | None,
    columns: Sequence[str],
    *sections: Iterable[Sequence[str]],
    width: int | None,
    right: Sequence[str] | None = None,
) -> None:
    """In the terminal; `right` names the columns that stand to the right: None is all but the first."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in columns:
        ends = name in right if right is not None else name != columns[0]
        table.add_column(name, justify="right" if ends else "left", overflow="fold")
    for rows in sections:
        for row in rows:
            table.add_row(*row)
        table.add_section()
    Console(width=width).print(table)
