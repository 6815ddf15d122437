"""A trace as people meet it: a JSON summary, tables, drawings, and one page that opens offline."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl

from isotrace.attribution.graph_files import KEY
from isotrace.base.result import Result
from isotrace.base.runs import Run
from isotrace.report.page import render_trace


@dataclass(frozen=True, eq=False)
class TraceResult(Result):
    """What `isotrace.trace` found. `tensors`: the pruned graph, as `attribution.graph_files` keeps it.

    `view`: `page` (what the page shows and the summary does not hold), `drawing` (a small SVG), `viewer` (the graph for
    viewers that follow Neuronpedia's schema), `graph` (the header of graph.safetensors).
    """

    kind: ClassVar[str] = "trace"
    tensor_file: ClassVar[str] = "graph"

    @property
    def header(self) -> dict[str, str]:
        return {KEY: self.view["graph"]}

    @property
    def units(self) -> list[dict[str, Any]]:
        """Atoms with their mass and signed effect, in the order of the molecule that came in."""
        return self.summary["units"]

    def to_frame(self) -> pl.DataFrame:
        """Circuit features, one row each, most influential first."""
        return self.tables["features"]

    def payload(self, manifest: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What `render_trace` takes: the page's own data beside the summary's."""
        summary, page, run = self.summary, self.view["page"], dict(manifest or {})
        circuit = summary["circuit"] | page["circuit"]
        circuit["control"] = summary["circuit"]["control"] | page["circuit"]["control"]
        shared = ("input", "subject", "dictionary", "warnings", "units", "syntax", "graph", "spellings")
        return {
            **page,
            **{name: summary[name] for name in (*shared, "supporters", "opponents")},
            "target": summary["target"] | page["target"],
            "verification": page["verification"]
            | {
                key: {"value": summary["verification"][key], "ci": summary["verification"][f"{key}_ci"]}
                for key in ("pearson_frozen", "pearson_free_running")
            },
            "circuit": circuit,
            "command": run.get("command", "isotrace.trace"),
            "created": run.get("started", ""),
            "manifest": page["settings"] | run.get("versions", {}),
        }

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        return render_trace(self.payload(manifest))

    def _repr_html_(self) -> str:
        return self.view["drawing"]

    def write(self, run: Run) -> None:
        """Also graph.json for viewers, supernodes.json, network.json and two drawings."""
        super().write(run)
        page = self.view["page"]
        run.json("graph", self.view["viewer"])
        run.json("supernodes", page["circuit"]["supernodes"]["file"])
        run.json("network", page["circuit"]["network"])
        run.text("molecule_mass.svg", page["molecule"]["mass_svg"])
        run.text("molecule_signed.svg", page["molecule"]["signed_svg"])
