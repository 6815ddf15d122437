"""What `isotrace scan` found: predicted beside measured effects of mutations, with a map of positions × residues."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import polars as pl

from isotrace.base.result import Result
from isotrace.base.runs import Run, to_jsonable
from isotrace.domains.substitutions import RESIDUES
from isotrace.probing.scan import Scanned
from isotrace.report.card.carded import shared
from isotrace.report.figures import COLOURS, GREY, INK, dot, picture, reach, scale, text
from isotrace.report.page import colour, interval, number, render_page, template_text
from isotrace.report.probe import BOTTOM, DOTS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, axes
from isotrace.stats.bootstrap import interval as interval_of
from isotrace.subjects.subject import Subject

SOURCES = {
    "subject": "the subject",
    "untrained": "an untrained copy of the subject",
    "blosum62": "BLOSUM62, added up over the mutations",
    "site_mean": "the mean of what was measured of the other variants at the same sites",
}
ROWS = "AVILMCFYWSTNQGPDEKRH"
"""Residues of the map, like beside like."""
_CELL, _SIDE, _HEAD, _PER_ROW, _LEVELS, _ABSENT = 14, 22, 46, 60, 16, "#eef1f4"
_FULL = 0.98
"""Quantile of the distance from the median that has full colour."""


class ScanResult(Result):
    """`summary` as docs/scan.md lists it; tables `variants` (a row per variant), `map` (a row per site and residue) and
    `rejects`."""

    kind = "scan"

    def to_frame(self) -> pl.DataFrame:
        """A row per variant: what was measured, what the subject and the others say."""
        return self.tables["variants"]

    def write(self, run: Run) -> None:
        super().write(run)
        run.text("variants.csv", self.to_frame().write_csv())

    def told(self) -> Iterable[str]:
        yield self.summary["verdict"]
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
            "created": run.get("started", ""),
            "command": run.get("command", ""),
        }
        return render_page("scan.html.j2", to_jsonable(page), script=template_text("copy.js"), data=None)

    def maps(self) -> list[str]:
        """SVG of every stretch of sites: predicted above, measured below."""
        frame = self.tables["map"]
        if frame.is_empty():
            return []
        sign = 1 if self.summary["worse"] == "low" else -1
        frame = frame.with_columns(better=sign * pl.col("measured"))
        sites = frame["site"].unique().sort().to_list()
        drawn = {name: _shades(frame, name) for name in ("predicted", "better")}
        cells = {(row["site"], row["residue"]): row for row in frame.to_dicts()}
        parts = [sites[i : i + _PER_ROW] for i in range(0, len(sites), _PER_ROW)]
        return [heat_map(part, cells, drawn) for part in parts]

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

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in self.told())
        return f"<div>{''.join(self.maps()[:1])}{lines}</div>"


def _shades(frame: pl.DataFrame, name: str) -> dict[tuple[int, str], str]:
    """Colour of every cell that has a value: blue for worse than the median of the map, orange for better."""
    known = frame.filter(pl.col(name).is_finite())
    if known.is_empty():
        return {}
    centred = known[name].to_numpy() - known[name].median()
    end = float(np.quantile(np.abs(centred), _FULL)) or 1.0
    shares = np.round(np.clip(centred / end, -1, 1) * _LEVELS) / _LEVELS
    found = (colour(share, 1.0, diverging=True) for share in shares.tolist())
    return {
        (site, residue): shade for (site, residue), shade in zip(known["site", "residue"].rows(), found, strict=True)
    }


def heat_map(
    sites: Sequence[int],
    cells: Mapping[tuple[int, str], Mapping[str, Any]],
    shades: Mapping[str, Mapping[tuple[int, str], str]],
) -> str:
    """Cells of one colour are one path, so that a page of a long chain stays small; every column tells its numbers."""
    height = len(ROWS) * _CELL
    tops = {name: _HEAD + i * (height + _HEAD) for i, name in enumerate(shades)}
    named = {"predicted": "predicted", "better": "measured"}
    parts = []
    for name, top in tops.items():
        parts.append(text(_SIDE, top - 31, named[name], "start", GREY, 12))
        by_colour: dict[str, list[str]] = {}
        for i, site in enumerate(sites):
            for j, residue in enumerate(ROWS):
                shade = shades[name].get((site, residue), _ABSENT)
                by_colour.setdefault(shade, []).append(f"M{_SIDE + i * _CELL} {top + j * _CELL}h13v13h-13z")
                if cells[site, residue]["wild_type"] == residue:
                    parts.append(
                        f'<circle cx="{_SIDE + i * _CELL + 6.5}" cy="{top + j * _CELL + 6.5}" r="2" fill="{INK}"/>'
                    )
            wild = cells[site, ROWS[0]]["wild_type"]
            parts.append(text(_SIDE + i * _CELL + 6.5, top - 4, wild, "middle", INK, 11))
            if site % 5 == 0 or not i:
                parts.append(text(_SIDE + i * _CELL + 6.5, top - 16, str(site), "middle", GREY, 9))
        parts[:0] = [f'<path d="{"".join(d)}" fill="{shade}"/>' for shade, d in by_colour.items()]
        parts += [text(_SIDE - 10, top + j * _CELL + 11, r, "middle", INK, 11) for j, r in enumerate(ROWS)]
    bottom = max(tops.values()) + height
    for i, site in enumerate(sites):
        said = [_said(cells[site, residue]) for residue in ROWS if cells[site, residue]["wild_type"] != residue]
        parts.append(
            f'<rect x="{_SIDE + i * _CELL}" y="{_HEAD}" width="13" height="{bottom - _HEAD}" fill="none" '
            f'pointer-events="all"><title>{escape(chr(10).join(said))}</title></rect>'
        )
    width = _SIDE + max(len(sites), 12) * _CELL + 4
    return picture(width, bottom + 6, "positions × residues", parts, "map", fixed=True)


def _said(cell: Mapping[str, Any]) -> str:
    known = {name: cell[name] for name in ("predicted", "measured") if cell[name] is not None}
    values = ", ".join(f"{name} {number(value)}" for name, value in known.items())
    return f"{cell['wild_type']}{cell['site']}{cell['residue']}: {values or 'no value'}"


def scan_result(found: Scanned, subject: Subject, name: str | None) -> ScanResult:
    scan = found.scan
    performance = {subset: {s: _value(draws) for s, draws in of.items()} for subset, of in found.scores.items()}
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
        "better_than": {source: {"by": _value(d)["value"], "ci": _value(d)["ci"]} for source, d in better.items()},
        "verdict": verdict(performance["all"], better),
        "warnings": warnings(found, len(sites)),
        "rejects": scan.rejects.head(20).to_dicts(),
        "n_rejected": scan.rejects.height,
    }  # fmt: skip
    tables = {"variants": variants(found), "map": site_map(found), "rejects": scan.rejects}
    return ScanResult(to_jsonable(summary), {}, tables)


def _value(draws: np.ndarray) -> dict[str, Any]:
    return {"value": float(draws[0]), "ci": list(interval_of(draws[1:]))}


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
    said = []
    if n_sites < 10:
        said.append(f"the variants change {n_sites} sites only: intervals over sites say little, and may be too narrow")
    lost = found.scan.rejects.height
    if lost > len(found.scan.variants):
        said.append(f"{lost:,} rows are rejected, more than are used: see the reasons")
    return said


def variants(found: Scanned) -> pl.DataFrame:
    """`index` of the first row; `mutation` as the file counts, `sites` in the sequence, by commas; `n` rows, whose mean
    is `measured`, `sd` their standard deviation."""
    rows = []
    for variant in found.scan.variants:
        spread = float(np.std(variant.effects, ddof=1)) if len(variant.effects) > 1 else None
        rows.append(
            {"index": variant.index, "mutation": variant.name, "sites": ",".join(map(str, variant.sites)),
             "n_mutations": len(variant.changes), "n": len(variant.effects), "measured": variant.effect, "sd": spread}
        )  # fmt: skip
    frame = pl.DataFrame(rows, schema_overrides={"sd": pl.Float64}, infer_schema_length=None)
    names = {"subject": "predicted"}
    columns = [pl.Series(names.get(source, source), values) for source, values in found.predicted.items()]
    return frame.with_columns(columns).sort("index")


def site_map(found: Scanned) -> pl.DataFrame:
    """A row per site and residue, single mutations: `site` as the file counts, `position` in the sequence. Of a causal
    subject, and where the sequence has none of the twenty, only what was measured is predicted."""
    scan, single = found.scan, {}
    for variant, value in zip(scan.variants, found.predicted["subject"], strict=True):
        if len(variant.changes) == 1:
            single[variant.sites[0], variant.changes[0].after] = (variant.effect, len(variant.effects), float(value))
    rows = []
    for position, wild in enumerate(scan.wild_type, start=1):
        for place, residue in enumerate(RESIDUES):
            measured, n, predicted = single.get((position, residue), (None, 0, None))
            if found.every is not None:
                every = float(found.every[position - 1, place])
                predicted = every if np.isfinite(every) else None
            rows.append((position - scan.offset, position, wild, residue, predicted, measured, n))
    kinds = (pl.Int64, pl.Int64, pl.String, pl.String, pl.Float64, pl.Float64, pl.Int64)
    names = ("site", "position", "wild_type", "residue", "predicted", "measured", "n")
    return pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row")
