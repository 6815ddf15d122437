"""What a file of sequences says about substructures: one table to take to a meeting, and what stands behind it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl

from isotrace.attribution.screen.screen import Screened
from isotrace.attribution.screen.substructures import over_molecules
from isotrace.base.result import Result
from isotrace.base.runs import Run, to_jsonable
from isotrace.datasets.reading.cells import free_names
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.domains.domain import Domain, Reading, domain_of
from isotrace.report.card.carded import shared, tsv
from isotrace.report.page import render_page, template_text
from isotrace.report.trace.substructures import bars, frame, over_frame, said, words
from isotrace.stats.bootstrap import mean_interval
from isotrace.subjects.targets import Target


class ScreenResult(Result):
    """`summary["substructures"]`: see `over_molecules`. Tables `molecules` (the value, and the user's own columns),
    `substructures` and `atoms` (per molecule), `features` (over molecules), `rejects`."""

    kind = "screen"

    def to_frame(self) -> pl.DataFrame:
        """One row per substructure."""
        return self.tables["over_molecules"]

    def told(self) -> Iterable[str]:
        unit = self.summary["target"]["unit"]
        yield f"{self.summary['n_molecules']} {self.words['things']}, {self.summary['target']['name']}"
        for row in self.summary["substructures"][:5]:
            yield f"{row['substructure']}: {said(row, unit)} ({row['molecules']} {self.words['things']})"

    def write(self, run: Run) -> None:
        super().write(run)
        run.text("substructures.csv", self.to_frame().write_csv())
        run.text("substructures.svg", self.drawn())

    @property
    def words(self) -> dict[str, str]:
        return words(self.summary)

    def drawn(self) -> str:
        return bars(self.summary["substructures"], self.summary["target"]["unit"], **self.words)

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        title, run = f"What moves {self.summary['target']['name']}", dict(manifest or {})
        about = f"{self.summary['n_molecules']} {self.words['things']}, {self.summary['target']['description']}"
        copies = {"command": run.get("command", ""), "substructures (TSV)": tsv(self.to_frame())}
        page = self.summary | {
            "title": title,
            **self.words,
            "named": bool(domain_of(self.summary["domain"]).substructures),
            **shared(run, title, about, copies),
            "picture": self.drawn(),
            "features": self.tables["features"].head(30).to_dicts(),
            "created": run.get("started", ""),
            "command": run.get("command", ""),
        }
        return render_page("screen.html.j2", to_jsonable(page), script=template_text("copy.js"), data=None)

    def _repr_html_(self) -> str:
        return f"<div>{self.drawn()}</div>"


def screen_result(
    about: Mapping[str, Any],
    target: Target,
    rows: pl.DataFrame,
    domain: Domain,
    found: Sequence[tuple[int, Reading, Screened]],
    names: FeatureTables,
    layers: Sequence[int],
    rejects: pl.DataFrame,
    seed: int,
) -> ScreenResult:
    """`found`: row, reading and what was measured; `rows` the input, whose columns travel along; `layers` the
    subject's number of every layer of the dictionary."""
    over = over_molecules((one.substructures for *_, one in found), seed)
    parts, atoms, lists = [], [], {"layer": [], "feature": [], "effect": []}
    for index, reading, one in found:
        for part in one.substructures:
            spelt = "".join(reading.units[p].text for p in part.at)
            parts.append((index, part.name, spelt, len(part.at), part.effect, part.random))
        written = zip(reading.units, reading.elements, strict=True)
        symbols = {e: unit.text for unit, own in written for e in own}
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
        "domain": domain.name,
        "element": domain.element,
        "target": {"kind": target.kind, "name": target.name, "unit": target.unit, "description": target.description},
        "n_molecules": len(found),
        "substructures": over,
        "rejects": rejects.to_dicts(),
    }
    return ScreenResult(to_jsonable(summary), {}, tables)


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
