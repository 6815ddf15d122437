"""isotrace features: which features are active in these sequences?"""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems
from isotrace.verbs.features import FeaturesRequest, features


def show(summary: dict[str, Any], request: FeaturesRequest) -> None:
    typer.echo(
        f"{summary['n_active']:,} activations of {summary['n_features']:,} features on {summary['n_tokens']:,} tokens "
        f"of {summary['n_sequences']:,} sequences"
    )
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"table: {request.out / 'features.parquet'}")


command = command_of(features, show)
