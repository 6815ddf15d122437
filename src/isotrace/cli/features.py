"""isotrace features: which features are active in these sequences, or what is one of them connected to?"""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems, show_table
from isotrace.verbs.features import FeaturesRequest, features


def show(summary: dict[str, Any], request: FeaturesRequest) -> None:
    if request.feature is not None:
        show_connections(summary, request)
        return
    typer.echo(
        f"{summary['n_active']:,} activations of {summary['n_features']:,} features on {summary['n_tokens']:,} tokens "
        f"of {summary['n_sequences']:,} sequences"
    )
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"table: {request.out / 'features.parquet'}")


def show_connections(summary: dict[str, Any], request: FeaturesRequest) -> None:
    from isotrace.report.connections import COLUMNS, RELATIONS, described, rows_of

    typer.echo("\n".join(described(summary)))
    for relation, title in RELATIONS.items():
        if rows := rows_of(summary, relation):
            show_table(title, COLUMNS, rows, width=None, right=("gives [95 % CI]", "null", "p"))
    typer.echo("gives: in standard deviations of the pre-activation that reads, when it fires; to logits in logits")
    typer.echo(
        "*: above the null, decoder rows in another order; p: of features about as dense, how many would give as much"
    )
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"table: {request.out / 'connections.parquet'}")


command = command_of(features, show)
