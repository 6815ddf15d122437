"""isotrace annotate: what do the features of a dictionary mean, and should one believe it?"""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems, show_table
from isotrace.verbs.annotate import AnnotateRequest, annotate

COLUMNS = ("concepts with a feature at q < 0.05", "F1 ≥ 0.5 [95 % CI]", "F1 ≥ 0.8 [95 % CI]", "features alive")


def show(summary: dict[str, Any], request: AnnotateRequest) -> None:
    """Sources beside each other."""
    title = (
        f"{summary['subject']}: {summary['n_labelled']} of {summary['n_features']} features named, "
        f"{summary['n_concepts']} concepts, {summary['n_tokens']} {summary['rows']}"
    )
    rows = []
    for name, found in summary["sources"].items():
        if "concepts_f1_50" not in found:
            rows.append((name, found["reason"], "", ""))
            continue
        counts = [(found[f"concepts_{level}"], *found[f"concepts_{level}_ci"]) for level in ("f1_50", "f1_80")]
        rows.append((name, *(f"{n} [{low}, {high}]" for n, low, high in counts), str(found["n_alive"])))
    show_table(title, COLUMNS, rows, width=110)
    show_problems(summary, request)
    typer.echo(f"atlas: {request.out}/report.html")


command = command_of(annotate, show, saves=True)
