"""What a file of molecules says about substructures: one table to take to a meeting, and what stands behind it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from isotrace.attribution.screen.screen import Screened, over_molecules
from isotrace.base.result import Result
from isotrace.base.runs import Run, to_jsonable
from isotrace.datasets.reading.cells import free_names
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.domains.domain import Reading
from isotrace.report.figures import COLOURS, GREY, INK, dot, path, picture, reach, scale, text, ticks
from isotrace.report.page import number, render_page
from isotrace.stats.bootstrap import mean_interval
from isotrace.subjects.targets import Target

SHOWN = 24  # substructures drawn, those of most molecules first
WIDTH, ROW, LEFT, TOP = 640, 22, 240, 34


class ScreenResult(Result):
    """`summary["substructures"]`: see `over_molecules`. Tables `molecules` (the value, and the user's own columns),
    `substructures` and `atoms` (per molecule), `features` (over molecules), `rejects`."""

    kind = "screen"

    def to_frame(self) -> pl.DataFrame:
        """One row per substructure."""
        return self.tables["over_molecules"]

    def told(self) -> Iterable[str]:
        unit = self.summary["target"]["unit"]
        yield f"{self.summary['n_molecules']} molecules, {self.summary['target']['name']}"
        for row in self.summary["substructures"][:5]:
            yield f"{row['substructure']}: {said(row, unit)} ({row['molecules']} molecules)"

    def write(self, run: Run) -> None:
        super().write(run)
        run.text("substructures.csv", self.to_frame().write_csv())
        run.text("substructures.svg", self.drawn())

    def drawn(self) -> str:
        return bars(self.summary["substructures"], self.summary["target"]["unit"])

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        page = self.summary | {
            "title": f"Which substructures move {self.summary['target']['name']}",
            "picture": self.drawn(),
            "features": self.tables["features"].head(30).to_dicts(),
            "created": (manifest or {}).get("started", ""),
            "command": (manifest or {}).get("command", ""),
        }
        return render_page("screen.html.j2", to_jsonable(page), script="", data=None)

    def _repr_html_(self) -> str:
        return f"<div>{self.drawn()}</div>"


def said(row: Mapping[str, Any], unit: str) -> str:
    """What it does beyond random atoms, with its interval."""
    bounds = row["beyond_ci"]
    return f"{number(row['beyond'])} {unit}" + (f" [{number(bounds[0])}, {number(bounds[1])}]" if bounds else "")


def bars(rows: Sequence[Mapping[str, Any]], unit: str) -> str:
    """What hiding does beyond random atoms, with its interval; of substructures in enough molecules to have one."""
    shown = sorted([row for row in rows if row["beyond_ci"]][:SHOWN], key=lambda row: row["beyond"])
    if not shown:
        return picture(WIDTH, 60, "substructures", [text(WIDTH / 2, 34, "too few molecules for intervals", "middle")])
    low, high = reach([0.0, *(v for row in shown for v in row["beyond_ci"])])
    across, height = scale(low, high, LEFT, WIDTH - 16), TOP + ROW * len(shown) + 30
    parts = [path([(across(0), TOP - 6), (across(0), height - 30)], GREY)]
    parts.append(text(8, 18, f"← lowers   raises →   {unit}, beyond random atoms, 95 % CI", "start"))
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


def screen_result(
    about: Mapping[str, Any],
    target: Target,
    rows: pl.DataFrame,
    found: Sequence[tuple[int, Reading, Screened]],
    names: FeatureTables,
    layers: Sequence[int],
    rejects: pl.DataFrame,
    seed: int,
) -> ScreenResult:
    """`found`: row, reading and what was measured; `rows` the input, whose columns travel along; `layers` the
    subject's number of every layer of the dictionary."""
    over = over_molecules((one for *_, one in found), seed)
    parts, atoms, lists = [], [], {"layer": [], "feature": [], "effect": []}
    for index, reading, one in found:
        for part in one.substructures:
            spelt = "".join(reading.units[p].text for p in part.tokens)
            parts.append((index, part.name, spelt, len(part.tokens), part.effect, part.random))
        symbols = {a: unit.text for unit in reading.units if unit.kind == "atom" for a in unit.atoms}
        atoms += [(index, atom, symbols.get(atom), effect) for atom, effect in one.atoms.items()]
        by_feature: dict[tuple[int, int], float] = {}
        for layer, _, feature, effect in one.features:
            by_feature[layer, feature] = by_feature.get((layer, feature), 0.0) + effect
        for (layer, feature), effect in by_feature.items():
            for name, value in zip(lists, (layers[layer], feature, effect), strict=True):
                lists[name].append(value)
    values = pl.DataFrame({"index": [i for i, *_ in found], "value": [one.value for *_, one in found]})
    own = rows.drop("original", strict=False)
    own = own.rename(free_names([c for c in own.columns if c not in ("index", "name", "sequence")], values.columns))
    tables = {
        "over_molecules": over_frame(over),
        "molecules": own.join(values, on="index", how="inner").sort("index"),
        "substructures": frame(parts, "index", "substructure", "written", "n_tokens", "effect", "random"),
        "atoms": frame(atoms, "index", "atom", "symbol", "effect"),
        "features": _features(pl.DataFrame(lists), names, seed),
        "rejects": rejects,
    }
    summary = {
        **about,
        "target": {"kind": target.kind, "name": target.name, "unit": target.unit, "description": target.description},
        "n_molecules": len(found),
        "substructures": over,
        "rejects": rejects.to_dicts(),
    }
    return ScreenResult(to_jsonable(summary), {}, tables)


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


def _features(found: pl.DataFrame, names: FeatureTables, seed: int) -> pl.DataFrame:
    """Features that are among the strongest of most molecules: label, number of molecules, mean effect there."""
    if found.is_empty():
        return pl.DataFrame(schema={"layer": pl.Int64, "feature": pl.Int64, "label": pl.String, "molecules": pl.Int64})
    grouped = found.group_by("layer", "feature").agg(pl.len().alias("molecules"), pl.col("effect").alias("effects"))
    grouped = grouped.sort(["molecules", "layer", "feature"], descending=[True, False, False])
    keys = list(zip(grouped["layer"].to_list(), grouped["feature"].to_list(), strict=True))
    known = names.of(keys)
    rows = []
    for layer, feature, molecules, effects in grouped.rows():
        low, high = mean_interval(pl.Series(effects).to_numpy(), seed)
        label = names.label(known.get((layer, feature), {}))
        rows.append((layer, feature, label, molecules, sum(effects) / molecules, low, high))
    return frame(rows, "layer", "feature", "label", "molecules", "effect", "effect_low", "effect_high")
