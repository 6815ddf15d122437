"""Which reactions are whole: balance, containment of the product, and product atoms that come from nowhere."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from isotrace.base.errors import InputError
from isotrace.verbs.request import PLACE, Column, Data, InFolder, Progress, Seeded, look_at, verb

if TYPE_CHECKING:
    import polars as pl

    from isotrace.report.features import BalanceTable


class BalanceRequest(InFolder, Seeded):
    data: Annotated[Data, PLACE]
    out: Path | None = None
    """Run folder; without it only what is printed."""
    column: Column = None
    maps: str | None = None
    """Column of the same reactions with atom maps; left out, those that the reactions hold themselves."""
    redox: Literal["acid", "base"] | None = None
    """Half-reactions: electrons, water and H+ (acid) or OH- (base) may complete them."""

    def look(self) -> None:
        super().look()
        look_at(self.data, self.column, maps=self.maps)


@verb(BalanceRequest)
def balance(request: BalanceRequest, progress: Progress) -> "BalanceTable":
    """Whether reactions balance, whether the precursors hold the product's heavy atoms, and what is missing."""
    from contextlib import nullcontext

    from isotrace.base.runs import open_run
    from isotrace.datasets.inputs import read_inputs
    from isotrace.datasets.reading.cells import column_of
    from isotrace.verbs.loading import named

    rows, rejects = read_inputs(request.data, column=request.column)
    maps = None if request.maps is None else column_of(rows, request.maps, "--maps")
    where = {"command": request.command, "seed": request.seed, "overwrite": request.overwrite}
    inputs = {"data": named(request.data, request.column)}
    with nullcontext() if request.out is None else open_run(request.out, inputs=inputs, **where) as run:
        result = _checked(request, rows, maps, rejects, progress)
        if run is not None:
            result.write(run)
    return result


def _checked(
    request: BalanceRequest, rows: "pl.DataFrame", maps: str | None, rejects: "pl.DataFrame", progress: Progress
) -> "BalanceTable":
    from dataclasses import asdict
    from typing import get_args

    import polars as pl

    from isotrace.datasets.inputs import rejects_frame
    from isotrace.domains.reaction.completeness import Verdict, completeness
    from isotrace.report.features import BalanceTable
    from isotrace.verbs.loading import label

    refused, found = rejects.rows(), []
    for row in progress(rows.rows(named=True), "reactions"):
        text = row["sequence"]
        try:
            checked = completeness(text, None if maps is None else row[maps], request.redox)
            found.append({"index": row["index"], "reaction": text, **asdict(checked)})
        except InputError as error:
            refused.append((row["index"], text, str(error)))
    if not found:
        raise InputError(f"no row of {label(request.data)!r} can be used; first reason: {refused[0][2]}")
    verdicts, left_out = [row["verdict"] for row in found], rejects_frame(refused)
    summary: dict[str, Any] = {
        "n_reactions": len(found),
        "verdicts": {verdict: verdicts.count(verdict) for verdict in get_args(Verdict)},
        "n_with_equation": sum(row["equation"] is not None for row in found),
        "shares": _shares([row["reaction"] for row in found], verdicts, request.seed),
        "reactions": found,
        "rejects": left_out.to_dicts(),
    }
    texts = dict.fromkeys(("equation", "by_product", "name", "nowhere"), pl.String)
    frame = pl.DataFrame(found, schema_overrides=texts | {"without_origin": pl.List(pl.Int64)})
    return BalanceTable(summary, tables={"balance": frame, "rejects": left_out})


def _shares(texts: list[str], verdicts: list[str], seed: int) -> list[dict[str, Any]]:
    """Of the reactions, with 95 % bootstrap intervals, beside the same with every product moved to another reaction:
    how often a product is contained, or balances, for its size alone. Balanced ones are contained too."""
    import numpy as np

    from isotrace.domains.reaction.balance import total
    from isotrace.domains.reaction.completeness import contained, species
    from isotrace.domains.reaction.tokens import parse_reaction
    from isotrace.stats.bootstrap import mean_interval

    sides = []
    for text in texts:
        parts = species(parse_reaction(text))
        before, reagents, after = (total([found for _, found in side]) for side in parts.values())
        sides.append((before, total([before, reagents]), after))
    order = np.random.default_rng(seed).permutation(len(texts))
    after = {int(i): sides[j][2] for i, j in zip(order, np.roll(order, 1), strict=True)}  # none stays, if there are two
    moved = {
        "contained": [contained(both, after[i]) for i, (_, both, _) in enumerate(sides)],
        "balanced": [after[i] in (before, both) for i, (before, both, _) in enumerate(sides)],
    }
    as_they_are = {
        "contained": [verdict != "atoms from nowhere" for verdict in verdicts],
        "balanced": [verdict == "balanced" for verdict in verdicts],
    }
    rows = []
    for what, values in as_they_are.items():
        here, there = np.array(values, float), np.array(moved[what] if len(texts) > 1 else [np.nan], float)
        row = {"what": what, "n": sum(values), "share": float(here.mean()), "share_ci": mean_interval(here, seed)}
        rows.append(row | {"null": float(there.mean()), "null_ci": mean_interval(there, seed)})
    return rows
