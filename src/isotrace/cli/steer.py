"""isotrace steer: fit a direction, calibrate it, design, and compare with random directions."""

from inspect import Parameter, Signature, signature
from typing import Annotated, Any

import typer

from isotrace.cli.command import command_of, show_problems, show_table
from isotrace.verbs.steer import SteerRequest, steer


def show(summary: dict[str, Any], request: SteerRequest) -> None:
    from isotrace.report.page import interval, number, percent  # which takes RDKit

    judge, n = summary["judge"], summary["n"]
    title = f"{summary['method']} towards {summary['label']}: {n['fitted']:,} sequences, {n['starts']:,} starts"
    nulls = summary["twins"]["nulls"]
    rows = [
        (number(row["dose"]), number(row["alpha"]), f"{number(row['effect'])} {interval(row['ci'])}",
         *("–" if not row[null] else f"{number(row[f'{null}_mean'])} ± {number(row[f'{null}_sd'])}" for null in nulls),
         number(row["p"]),
         percent(row["valid"]), percent(row["degenerate"]), {True: "yes", False: "no", None: "–"}[row["safe"]])
        for row in summary["doses"]
    ]  # fmt: skip
    show_table(
        title,
        ("dose, nats", "α", f"change of {judge['of']}", *nulls, "p", "valid", "degenerate", "safe"),
        rows,
        width=None,
    )
    typer.echo(
        f"judge: a forest that knows no language model, {judge['metric']} {number(judge['value'])} "
        f"{interval((judge['low'], judge['high']))} on held-out sequences"
    )
    if made := summary["composition"]:
        for name, part in (("length and counts", made["regressed"]), (" and ".join(made["tokens"]), made["without"])):
            typer.echo(f"without {name or 'any token'}: {number(part['effect'])} {interval(part['ci'])}, "
                       f"{percent(part['kept'])} kept")  # fmt: skip
    if told := summary["reaction"]:
        found = (f"{name} {percent(one['own'])}, {percent(one['twin'])}" for name, one in told["noticed"].items())
        typer.echo(f"found at 5 % false alarms, the edit and a random twin: {'; '.join(found)}")
    typer.echo(summary["verdict"])
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"report: {request.out / 'report.html'}")


def listed(asked: bool) -> None:
    """Print what each method needs, and end."""
    if asked:
        from isotrace.steering.directions.direction import needs

        columns = ("name", "labels", "pairs", "gradients", "cost", "tuned", "about")
        show_table("methods of steering", columns, [[row[c] for c in columns] for row in needs()], width=160, right=())
        raise typer.Exit


LIST = Annotated[bool, typer.Option("--list", help="Say what each method needs.", is_eager=True, callback=listed)]
steered = command_of(steer, show, saves=True)


def command(**given: Any) -> None:
    del given["list"]
    steered(**given)


command.__doc__ = steered.__doc__
command.__signature__ = Signature(  # pyright: ignore[reportFunctionMemberAccess]
    [*signature(steered).parameters.values(),
     Parameter("list", Parameter.KEYWORD_ONLY, default=False, annotation=LIST)]
)  # fmt: skip
