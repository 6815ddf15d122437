"""isotrace scan: how well a subject ranks the measured mutations of one sequence."""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems, show_table
from isotrace.verbs.scan import ScanRequest, scan

SAID = {
    "subject": "the subject",
    "untrained": "an untrained copy",
    "blosum62": "BLOSUM62",
    "site_mean": "mean of the others at the site",
}
MOST = 25


def show(summary: dict[str, Any], request: ScanRequest) -> None:
    from isotrace.report.page import interval, number, percent  # which takes RDKit

    n, performance = summary["n"], summary["performance"]
    title = f"{summary['label']}: {n['variants']:,} variants at {n['sites']:,} sites, {summary['method']}"
    rows = [
        (said, *(f"{number(one[source]['value'])} {interval(one[source]['ci'])}" for one in performance.values()))
        for source, said in SAID.items()
    ]
    show_table(title, ("Spearman [95 % CI]", *performance), rows, width=None)
    typer.echo(summary["verdict"])
    if summary["designs"] is not None:
        rows = [
            (one["name"] or one["mutation"], one["mutation"], number(one["predicted"]), percent(one["place"]),
             percent(one["place_like"]), number(one["measured"]))
            for one in summary["designs"][:MOST]
        ]  # fmt: skip
        columns = "design", "mutations", "predicted", "of the measured below", "of as many mutations", "measured"
        show_table(f"{len(summary['designs'])} designs", columns, rows, width=None)
        for one in summary["rejected_designs"]:
            typer.echo(f"design {one['index']} is rejected: {one['reason']}", err=True)
    if summary["features"] is not None:
        typer.echo(summary["features"]["verdict"])
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"report: {request.out / 'report.html'}")


command = command_of(scan, show, saves=True)
