"""What `isotrace scan` found: predicted beside measured effects of mutations, with a map of positions × residues."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np
import polars as pl

from isotrace.base.result import Result
from isotrace.base.runs import Run, to_jsonable
from isotrace.probing.scan import Scanned
from isotrace.report.card.carded import shared
from isotrace.report.figures import COLOURS, dot, picture, reach, scale
from isotrace.report.page import interval, number, render_page, template_text
from isotrace.report.probe import BOTTOM, DOTS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, axes
from isotrace.report.scan.changes import BESIDE
from isotrace.report.scan.heat_map import heat_maps
from isotrace.report.scan.tables import designs_frame, site_map, variants
from isotrace.stats.bootstrap import interval as interval_of
from isotrace.stats.bootstrap import valued
from isotrace.subjects.subject import Subject

SOURCES = {
    "subject": "the subject",
    "untrained": "an untrained copy of the subject",
    "blosum62": "BLOSUM62, added up over the mutations",
    "site_mean": "the mean of what was measured of the other variants at the same sites",
}
SHOWN = 50
"""Designs on the page."""


class ScanResult(Result):
    """`summary` as docs/scan.md lists it; tables `variants` (a row per variant), `map` (a row per site and residue),
    `designs`, `changes` (of features, a row per variant and feature), `rejects` and `rejected_designs`."""

    kind = "scan"

    def to_frame(self) -> pl.DataFrame:
        """A row per variant: what was measured, what the subject and the others say."""
        return self.tables["variants"]

    def write(self, run: Run) -> None:
        super().write(run)
        run.text("variants.csv", self.to_frame().write_csv())
        if not self.tables["designs"].is_empty():
            run.text("designs.csv", self.tables["designs"].write_csv())

    def told(self) -> Iterable[str]:
        yield self.summary["verdict"]
        if self.summary["features"]:
            yield self.summary["features"]["verdict"]
        for source, one in self.summary["performance"]["all"].items():
            yield f"{source}: Spearman {number(one['value'])} {interval(one['ci'])}"

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        summary, run = self.summary, dict(manifest or {})
        title = f"Mutations of {summary['wild_type']['name'] or 'one sequence'}: {summary['label']}"
        copies = {"verdict": summary["verdict"], "command": run.get("command", "")}
        page = summary | {
            "title": title,
            **shared(run, title, summary["verdict"], copies),
            "sources": SOURCES,
            "maps": self.maps(),
            "scatter": self.scatter(),
            "furthest": self.furthest().to_dicts(),
            "most": SHOWN,
            "beside": BESIDE,
            "worst": self.worst(),
            "created": run.get("started", ""),
            "command": run.get("command", ""),
        }
        return render_page("scan.html.j2", to_jsonable(page), script=template_text("copy.js"), data=None)

    def maps(self) -> list[str]:
        """SVG of every stretch of sites: predicted above, measured below."""
        return heat_maps(self.tables["map"], self.tables["designs"], self.summary["worse"])

    def scatter(self) -> str:
        frame = self.to_frame().select("mutation", "measured", "predicted").drop_nulls()
        (low_x, high_x), (low, high) = reach(frame["measured"].to_list()), reach(frame["predicted"].to_list())
        across, down = scale(low_x, high_x, LEFT, RIGHT), scale(low, high, BOTTOM, TOP)
        parts = axes(low_x, high_x, low, high, f"measured: {self.summary['label']}")
        parts += [dot(across(x), down(y), COLOURS[0], name, 2) for name, x, y in frame.rows()[:DOTS]]
        return picture(WIDTH, HEIGHT, "predicted over measured", parts, "scatter")

    def furthest(self) -> pl.DataFrame:
        """Variants whose rank the subject misses by most, as shares of all ranks (0 is the worst variant)."""
        sign = 1 if self.summary["worse"] == "low" else -1
        ranks = {"rank_measured": sign * pl.col("measured"), "rank_predicted": pl.col("predicted")}
        frame = self.to_frame().with_columns(**{name: (of.rank() - 0.5) / pl.len() for name, of in ranks.items()})
        return frame.sort((pl.col("rank_measured") - pl.col("rank_predicted")).abs(), descending=True).head(10)

    def worst(self) -> list[dict[str, Any]]:
        """The single variants that were measured worst, with the features that change most in them."""
        if "changes" not in self.tables:
            return []
        frame = self.to_frame().filter(pl.col("n_mutations") == 1)
        frame = frame.sort("measured", descending=self.summary["worse"] == "high").head(10)
        changes = {key[0]: rows.to_dicts() for key, rows in self.tables["changes"].group_by("mutation")}
        return [row | {"changes": changes.get(row["mutation"], [])} for row in frame.to_dicts()]

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in self.told())
        return f"<div>{''.join(self.maps()[:1])}{lines}</div>"


def scan_result(
    found: Scanned,
    subject: Subject,
    name: str | None,
    rejected_designs: pl.DataFrame | None = None,
    features: tuple[dict[str, Any], pl.DataFrame] | None = None,
) -> ScanResult:
    """`rejected_designs`, `features` (see `changes_summary`, `changes_frame`): None where not asked about."""
    scan, designs = found.scan, designs_frame(found)
    performance = {subset: {s: valued(draws) for s, draws in of.items()} for subset, of in found.scores.items()}
    own = found.scores["all"]
    better = {source: own["subject"] - draws for source, draws in own.items() if source != "subject"}
    sites = {site for variant in scan.variants for site in variant.sites}
    sizes = [len(variant.changes) for variant in scan.variants]
    summary = {
        "subject": subject.source,
        "label": scan.label,
        "wild_type": {"name": name, "sequence": scan.wild_type, "length": len(scan.wild_type)},
        "offset": scan.offset,
        "worse": found.settings.worse,
        "method": found.method,
        "n": {
            "variants": len(scan.variants), "rows": sum(len(variant.effects) for variant in scan.variants),
            "single": sizes.count(1), "sites": len(sites), "rejected": scan.rejects.height,
        },
        "performance": performance,
        "better_than": {source: {"by": valued(d)["value"], "ci": valued(d)["ci"]} for source, d in better.items()},
        "verdict": verdict(performance["all"], better),
        "warnings": warnings(found, len(sites)),
        "designs": None if rejected_designs is None else designs.to_dicts(),
        "rejected_designs": [] if rejected_designs is None else rejected_designs.to_dicts(),
        "features": None if features is None else features[0],
        "rejects": scan.rejects.head(20).to_dicts(),
        "n_rejected": scan.rejects.height,
    }  # fmt: skip
    tables = {"variants": variants(found), "map": site_map(found), "designs": designs, "rejects": scan.rejects}
    tables |= {} if rejected_designs is None else {"rejected_designs": rejected_designs}
    tables |= {} if features is None else {"changes": features[1]}
    return ScanResult(to_jsonable(summary), {}, tables)


def verdict(performance: Mapping[str, Mapping[str, Any]], better: Mapping[str, np.ndarray]) -> str:
    own = performance["subject"]
    said = f"Spearman {number(own['value'])} {interval(own['ci'])}"
    if not own["ci"][0] > 0:
        return f"Nothing shows that the subject ranks these mutations as measured: {said}."
    parts = []
    for source, name in (("untrained", "an untrained copy of it"), ("blosum62", "BLOSUM62")):
        low, high = interval_of(better[source][1:])
        how = "better than" if low > 0 else "worse than" if high < 0 else "no better than"
        parts.append(f"{how} {name} ({number(performance[source]['value'])})")
    return f"The subject ranks these mutations as measured, {said}: {' and '.join(parts)}."


def warnings(found: Scanned, n_sites: int) -> list[str]:
    said = [*found.scan.warnings]
    if n_sites < 10:
        said.append(f"the variants change {n_sites} sites only: intervals over sites say little, and may be too narrow")
        if any(len(variant.sites) > 1 for variant in found.scan.variants):
            said.append("the site mean leaves each variant out, and ranks backwards those that change the same sites")
    lost = found.scan.rejects.height
    if lost > len(found.scan.variants):
        said.append(f"{lost:,} rows are rejected, more than are used: see the reasons")
    return said
