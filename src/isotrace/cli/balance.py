"""isotrace balance: are these reactions whole?"""

from typing import Any

import typer

from isotrace.cli.command import command_of, show_problems, show_table
from isotrace.verbs.balance import BalanceRequest, balance

SHOWN = 20
COLUMNS = ("verdict", "by-product", "from nowhere", "H", "charge", "without origin", "reaction, or its equation")


def show(summary: dict[str, Any], request: BalanceRequest) -> None:
    from isotrace.report.page import interval, percent

    rows = sorted(summary["reactions"], key=lambda row: (-row["n_nowhere"], row["index"]))
    cells = []
    for row in rows[:SHOWN]:
        named = f"{row['by_product']} ({row['name']})" if row["name"] else row["by_product"] or ""
        origin = "" if row["without_origin"] is None else ", ".join(map(str, row["without_origin"])) or "none"
        text = row["equation"] or row["reaction"]
        signed = (f"{row[name]:+d}" if row[name] else "0" for name in ("hydrogens", "charge"))
        cells.append((row["verdict"], named, row["nowhere"] or "", *signed, origin, text))
    show_table(None, COLUMNS, cells, width=None, right=("H", "charge"))
    if len(rows) > SHOWN:
        typer.echo(f"{SHOWN} of {len(rows):,} reactions, those with most atoms from nowhere first")
    for row in summary["shares"]:
        said = f"{row['what']}: {row['n']:,} of {summary['n_reactions']:,}, {percent(row['share'])}"
        if len(rows) > 1:
            said += f" {interval(row['share_ci'])}; with products exchanged {percent(row['null'])}"
        typer.echo(said)
    show_problems(summary, request)
    if request.out is not None:
        typer.echo(f"table: {request.out / 'balance.parquet'}")


command = command_of(balance, show)
