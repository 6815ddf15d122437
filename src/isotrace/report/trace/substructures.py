"""The table of substructures over many molecules, drawn and as a frame."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from isotrace.attribution.screen.substructures import LEAST, Found, over_molecules
from isotrace.base.runs import to_jsonable
from isotrace.domains.domain import domain_of
from isotrace.report.figures import COLOURS, GREY, INK, dot, path, picture, reach, scale, text, ticks
from isotrace.report.page import number, plural

SHOWN = 24  # substructures drawn, those of most molecules first
WIDTH, ROW, LEFT, TOP = 640, 22, 240, 34


def said(row: Mapping[str, Any], unit: str) -> str:
    """What it does beyond random atoms, with its interval."""
    bounds = row["beyond_ci"]
    return f"{number(row['beyond'])} {unit}" + (f" [{number(bounds[0])}, {number(bounds[1])}]" if bounds else "")


def words(about: Mapping[str, Any]) -> dict[str, str]:
    """What the domain calls sequences and their elements: molecules and atoms."""
    return {"things": plural(about["domain"]), "elements": plural(about["element"])}


def bars(rows: Sequence[Mapping[str, Any]], unit: str, things: str, elements: str) -> str:
    """What each does beyond random elements, with its interval; of substructures in enough sequences to have one."""
    shown = sorted([row for row in rows if row["beyond_ci"]][:SHOWN], key=lambda row: row["beyond"])
    if not shown:
        return picture(WIDTH, 60, "substructures", [text(WIDTH / 2, 34, f"too few {things} for intervals", "middle")])
    low, high = reach([0.0, *(v for row in shown for v in row["beyond_ci"])])
    across, height = scale(low, high, LEFT, WIDTH - 16), TOP + ROW * len(shown) + 30
    parts = [path([(across(0), TOP - 6), (across(0), height - 30)], GREY)]
    parts.append(text(8, 18, f"← lowers   raises →   {unit}, beyond random {elements}, 95 % CI", "start"))
    for i, row in enumerate(shown):
        y, ends = TOP + ROW * (i + 0.5), row["beyond_ci"]
        colour = GREY if ends[0] <= 0 <= ends[1] else COLOURS[0]
        name = row["substructure"] if len(row["substructure"]) < 28 else f"{row['substructure'][:27]}…"
        parts.append(text(LEFT - 10, y + 5, f"{name} ({row['molecules']})", "end", INK, 13))
        parts.append(path([(across(v), y) for v in ends], colour, 'stroke-width="2"'))
        parts.append(dot(across(row["beyond"]), y, colour, said(row, unit), 4.5))
    for value in ticks(low, high, 7):
        parts.append(text(across(value), height - 10, number(value), "middle"))
    return picture(WIDTH, height, "substructures", parts, "bars")


def over_frame(over: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """With the ends of intervals in columns of their own, so that a spreadsheet can show them."""
    rows = []
    for row in over:
        flat = {name: value for name, value in row.items() if not name.endswith("_ci")}
        for key in ("effect", "random", "beyond"):
            flat |= dict(zip((f"{key}_low", f"{key}_high"), row[f"{key}_ci"] or (None, None), strict=True))
        rows.append(flat)
    return pl.DataFrame(rows, infer_schema_length=None)


def frame(rows: Sequence[tuple], *columns: str) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=list(columns), orient="row", infer_schema_length=None)


def over_traces(traces: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A table of `over_molecules` for every target, from what the summaries of `traces` say of each molecule."""
    by_target: dict[str, list[Mapping[str, Any]]] = {}
    for one in traces:
        if domain_of(one["domain"]).substructures:
            by_target.setdefault(one["target"]["name"], []).append(one)
    tables = []
    for name, own in by_target.items():
        found = [[Found(p["name"], (), p["effect"], _known(p["random"])) for p in one["substructures"]] for one in own]
        about = {"target": name, "unit": own[0]["target"]["unit"], "molecules": len(own)} | words(own[0])
        tables.append(about | {"rows": over_molecules(found)})
    return tables


def trace_frames(traces: Sequence[Mapping[str, Any]], tables: Sequence[Mapping[str, Any]]) -> dict[str, pl.DataFrame]:
    """`substructures`: every one of every trace, its atoms apart by blanks. `over_molecules`: see `over_traces`."""
    rows = [
        (t["index"], t["target"]["name"], p["name"], " ".join(map(str, p["elements"])), p["effect"], p["random"])
        for t in traces
        for p in t["substructures"]
    ]
    over = [{"target": one["target"], "unit": one["unit"]} | row for one in tables for row in one["rows"]]
    # NaN as null, which it is in a trace that was saved and read again
    every = frame(to_jsonable(rows), "index", "target", "substructure", "elements", "effect", "random")
    return {"substructures": every, "over_molecules": over_frame(over)}


def shown(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a page of traces needs: the tables over enough molecules, drawn, and a line on the targets of too few."""
    enough = [_drawn(one) for one in tables if one["molecules"] >= LEAST]
    few = [one["target"] for one in tables if one["molecules"] < LEAST]
    named = ", ".join(few[:3]) + (f" and {len(few) - 3} others" if len(few) > 3 else "")
    things = few and next(one["things"] for one in tables if one["target"] == few[0])
    line = f"Too few {things} for a table of substructures (it takes {LEAST} with one target): {named}."
    return {"over_molecules": enough, "too_few": line if few else None}


def _drawn(table: Mapping[str, Any]) -> dict[str, Any]:
    """With a picture of the rows that have an interval, and these alone; all of them where none has one."""
    rows = [row for row in table["rows"] if row["beyond_ci"]]
    picture = bars(rows, *(table[name] for name in ("unit", "things", "elements"))) if rows else None
    return {**table, "rows": rows or table["rows"], "picture": picture}


def _known(value: float | None) -> float:
    return float("nan") if value is None else value
