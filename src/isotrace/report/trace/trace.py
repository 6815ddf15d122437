"""A trace as people meet it: a JSON summary, tables, drawings, and one page that opens offline."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any, ClassVar

import polars as pl

from isotrace.attribution.graph_files import KEY
from isotrace.base.runs import Run, to_jsonable
from isotrace.report.atlas.structure import structure_page
from isotrace.report.card.carded import Carded, shared, tsv
from isotrace.report.card.trace import said, trace_card
from isotrace.report.maps import mapped
from isotrace.report.page import number, render_trace
from isotrace.report.trace.finding import finding
from isotrace.report.trace.graph.grid import grid
from isotrace.report.trace.graph.neuronpedia import linked

STRUCTURE = "structure.html"
LABELS = 8
"""Labels of tracks that are told in lines of text."""
PEARSON = tuple(f"pearson_{name}" for name in ("free_running", "first_order", "rest", "graph", "frozen"))


@dataclass(frozen=True, eq=False, repr=False)
class TraceResult(Carded):
    """What `isotrace.trace` found. `tensors`: the pruned graph, as `attribution.graph_files` keeps it.

    `view`: `page` (what the page shows and the summary does not hold), `structure` (a protein's, or None), `viewer`
    (the graph for viewers that follow Neuronpedia's schema, see `linked`), `graph` (the header of graph.safetensors).
    """

    kind: ClassVar[str] = "trace"
    tensor_file: ClassVar[str] = "graph"

    @property
    def header(self) -> dict[str, str]:
        return {KEY: self.view["graph"]}

    @property
    def units(self) -> list[dict[str, Any]]:
        """Atoms or residues in the order in which they came in, see `report.trace.atoms.unit_rows`."""
        return self.summary["units"]

    def to_frame(self) -> pl.DataFrame:
        """Circuit features, one row each, most influential first."""
        return self.tables["features"]

    def payload(self, manifest: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What `render_trace` takes: the page's own data beside the summary's."""
        summary, page, run = self.summary, self.view["page"], dict(manifest or {})
        circuit, found = summary["circuit"] | page["circuit"], finding(summary)
        circuit["control"] = summary["circuit"]["control"] | page["circuit"]["control"]
        shared = (
            "input",
            "domain",
            "element",
            "field",
            "subject",
            "dictionary",
            "warnings",
            "picture",
            "units",
            "syntax",
            "graph",
            "spellings",
        )
        return {
            **page,
            **{name: summary[name] for name in (*shared, "groups", "lanes", "supporters", "opponents")},
            "finding": {"sentence": found.sentence, "overturned": found.taken_back, "colours": found.colours},
            "target": summary["target"] | page["target"],
            "map": mapped(summary["map"]),
            "tracks": summary["tracks"],
            "verification": page["verification"]
            | {"n_exact": summary["verification"]["n_exact"]}
            | {
                key: {"value": summary["verification"][key], "ci": summary["verification"][f"{key}_ci"]}
                for key in PEARSON
            },
            "circuit": circuit,
            **self._shared(run),
            "structure": STRUCTURE if self.view["structure"] else None,
            "grid": grid(summary["features"], page["tokens"], page["n_layers"], summary["target"]["unit"]),
            "command": run.get("command", "isotrace.trace"),
            "created": run.get("started", ""),
            "manifest": page["settings"] | run.get("versions", {}),
        }

    def _shared(self, run: Mapping[str, Any]) -> dict[str, Any]:
        summary, title = to_jsonable(self.summary), self.view["page"]["title"]
        found = finding(summary)
        copies = {
            "SMILES" if summary["element"] == "atom" else "sequence": summary["input"],
            "sentence": f"{found.sentence} {found.taken_back}".rstrip(),
            "command": run.get("command", ""),
            "groups (TSV)": tsv(pl.DataFrame(summary["groups"], infer_schema_length=None)),
            **(
                {"labels (TSV)": tsv(pl.DataFrame(summary["tracks"], infer_schema_length=None))}
                if summary["tracks"]
                else {}
            ),
            f"{summary['element']}s (TSV)": tsv(self.tables["units"]),
            "circuit features (TSV)": tsv(self.tables["features"]),
        }
        return shared(run, f"{title}: {summary['target']['description']}", said(summary), copies)

    def card_svg(self) -> str:
        return trace_card(to_jsonable(self.summary), self._drawing)

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        return render_trace(self.payload(manifest))

    def told(self) -> Iterable[str]:
        lines = [*described(self.summary)]
        return [*lines[:3], *lines[4:]]  # without the correlations, which the page explains

    def drawn(self) -> tuple[str, str]:
        """(SVG in the colours of the picture, what they mean)."""
        seen, unit = self.summary["picture"], self.summary["target"]["unit"]
        most, n = max((abs(u[seen["shown"]] or 0.0) for u in self.units), default=0.0), seen["spellings"]
        what = "measured by hiding each" if seen["shown"] == "hidden" else "effect of their tokens, linearised"
        legend = (
            f"Orange {self.summary['element']}s raise the target, blue ones lower it: {what}"
            f"{f', mean over {n} spellings' if n > 1 else ''}; full colour is {number(most)} {unit}."
        )
        return self._drawing, legend

    @property
    def _drawing(self) -> str:
        kind = "hidden" if self.summary["picture"]["shown"] == "hidden" else "signed"
        return self.view["page"]["drawings"][kind]

    def _repr_html_(self) -> str:
        """The drawing, what was asked, and every warning."""
        (svg, legend), said = self.drawn(), [*described(self.summary)]
        lines = "".join(f"<p>{escape(line)}</p>" for line in (self.summary["target"]["description"], *said[1:]))
        return f"<div><p><b>{escape(said[0])}</b></p>{svg}<p>{escape(legend)}</p>{lines}</div>"

    def write(self, run: Run) -> None:
        """Also graph.json for viewers, supernodes.json, network.json and three drawings."""
        super().write(run)
        page = self.view["page"]
        run.json("graph", linked(self.view["viewer"]), indent=None)
        run.json("supernodes", page["circuit"]["supernodes"]["file"])
        run.json("network", page["circuit"]["network"])
        if self.view["structure"]:
            run.text(STRUCTURE, structure_page(**self.view["structure"]))
        for kind, svg in page["drawings"].items():
            run.text(f"{self.summary['domain']}_{kind}.svg", svg)


def described(summary: Mapping[str, Any]) -> Iterable[str]:
    """A trace in a few lines of plain text."""
    target, circuit, checks = summary["target"], summary["circuit"], summary["verification"]
    control = circuit["control"]
    seen = summary["picture"]
    over = (
        ""
        if seen["sd"] is None
        else (f" ({_fixed(seen['mean'])} ± {_fixed(seen['sd'])} over {seen['spellings']} spellings)")
    )
    yield f"{summary['input']}  {target['name']} = {_fixed(target['value'], 3)} {target['unit']}{over}"
    neurons = "" if circuit["neurons"]["error"] is None else f", as many neurons {_fixed(circuit['neurons']['error'])}"
    yield (
        f"circuit: {circuit['n_features']} features ({circuit['fraction_of_features']:.1%} of the active ones), alone "
        f"{_fixed(circuit['value'])}: {_fixed(circuit['error'])} from the model (all features ablated "
        f"{_fixed(abs(circuit['empty'] - circuit['full']))}, random circuits {_fixed(control['error_mean'])}{neurons})"
    )
    yield f"without it: {_fixed(circuit['removed'])} (without random circuits {_fixed(control['removed_mean'])})"
    yield (
        f"predicted against measured effects of single features: r = {_fixed(checks['pearson_free_running'])}, to "
        f"first order alone {_fixed(checks['pearson_first_order'])} (frozen graph {_fixed(checks['pearson_graph'])}); "
        f"replacement score {_fixed(summary['graph']['replacement_score'])}"
    )
    hidden = seen["shown"] == "hidden"
    other = "effects through the graph" if hidden else "measured by hiding each"
    beside = seen["hidden_reason"] or f"{other}: rank correlation {_fixed(seen['hidden_spearman'])}"
    what = "hidden one by one" if hidden else "effect"
    most = strongest(summary["units"], 5, seen["shown"])
    yield f"{summary['element']}s, {what}, in {target['unit']}: {most} ({beside})"
    for row in summary["tracks"][:LABELS]:
        name, of = ("hidden", "what hiding does") if hidden else ("mass", "the mass")
        if row[name] is not None:
            low, high = row[f"{name}_range"]
            alike = f"{row['share']:.0%} of the {summary['element']}s"
            yield (
                f"{row['track']} {row['label']}: {row[name]:.0%} of {of}, {alike} "
                f"(moved along the {summary['domain']}: {low:.0%} to {high:.0%}, q {_fixed(row[f'{name}_q'])})"
            )
    if (found := summary["map"]) is not None:
        yield f"tracing map: {found.get('verdict') or found['reason']}"
    for warning in summary["warnings"]:
        yield f"warning: {warning}"


def strongest(units: Iterable[Mapping[str, Any]], n: int, shown: str) -> str:
    """The elements with the largest entries `shown`, either way."""
    ranked = sorted(units, key=lambda u: -abs(u[shown] or 0.0))[:n]
    return ", ".join(f"{u['name']} {u[shown] or 0.0:+.2f}" for u in ranked)


def _fixed(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
