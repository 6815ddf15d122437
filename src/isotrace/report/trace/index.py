"""Many traces as people meet them: one JSON, a table, and a page that lists them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import polars as pl

from isotrace.attribution.verification import NEARER
from isotrace.base.result import Result
from isotrace.base.runs import Run
from isotrace.report.card.carded import shared, tsv
from isotrace.report.page import plural, render_index
from isotrace.report.trace.payload import fidelity_table
from isotrace.report.trace.substructures import over_traces, said, shown, trace_frames
from isotrace.report.trace.trace import TraceResult, described


@dataclass(frozen=True, eq=False, repr=False)
class Traces(Result):
    """What `isotrace.trace` found for many inputs. `summary["traces"]` holds what `TraceResult.to_dict` gives, with the
    `index` of its row, `summary["over_molecules"]` a table of substructures for every target. `found`: the results
    themselves, none after `load`: each was saved in a folder of its own.

    `view`: `title`, and `entries`, a card for every sequence.
    """

    kind: ClassVar[str] = "traces"
    found: tuple[TraceResult, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        title: str,
        source: Mapping[str, Any],
        found: Sequence[tuple[int, TraceResult]],
        folders: Sequence[str | None],
        rejects: pl.DataFrame,
    ) -> "Traces":
        """`source`: subject, dictionary and its fidelity. `found`: with the index of the row, those of one row beside
        each other. `folders`: where each is saved, beside the folder of this page."""
        entries: dict[int, dict[str, Any]] = {}
        for (index, result), folder in zip(found, folders, strict=True):
            one, (svg, legend) = result.summary, result.drawn()
            drawn = {"svg": svg, "legend": f"{one['target']['name']}: {legend}"}
            card = {"name": one["name"] or one["input"], "text": one["input"], "pages": []} | drawn
            row = page_row(one, None if folder is None else f"../{folder}/report.html")
            row["card"] = None if folder is None else f"../{folder}/card.png"
            entries.setdefault(index, card)["pages"].append(row)
        traces = [result.to_dict() | {"index": index} for index, result in found]
        over = over_traces(traces)
        summary = {**source, "traces": traces, "over_molecules": over, "rejects": rejects.to_dicts()}
        view = {"title": title, "entries": list(entries.values())}
        tables = {"traces": flat(traces), **trace_frames(traces, over), "rejects": rejects}
        return cls(summary, view, tables, found=tuple(r for _, r in found))

    def to_frame(self) -> pl.DataFrame:
        """One row per trace."""
        return self.tables["traces"]

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        entries, run = self.view["entries"], dict(manifest or {})
        pages = [p for e in entries for p in e["pages"]]
        domains = sorted({(one["domain"], one["element"]) for one in self.summary["traces"]})
        things, elements = (" and ".join(dict.fromkeys(plural(one[i]) for one in domains)) for i in (0, 1))
        told = [f"{len(pages)} predictions of {len(entries)} {things}, each traced to features and {elements}."]
        copies = {"command": run.get("command", ""), "table (TSV)": tsv(self.to_frame())}
        return render_index(
            {
                **self.view,
                **shared(run, self.view["title"], told[0], copies),
                **{name: self.summary[name] for name in ("subject", "dictionary", "rejects")},
                "created": run.get("started", ""),
                "summary": [*told, *claims(pages)],
                **shown(self.summary["over_molecules"]),
                "fidelity": fidelity_table(self.summary["fidelity"]),
            }
        )

    def told(self) -> Iterable[str]:
        traces = self.summary["traces"]
        yield f"{len(traces)} traced, {len(self.summary['rejects'])} rejected"
        for one in traces[:3]:
            yield next(iter(described(one)))
        for one in self.summary["over_molecules"]:
            for row in [row for row in one["rows"] if row["beyond_ci"]][:3]:
                among = f"{row['molecules']} {one['things']}"
                yield f"{one['target']}, {row['substructure']}: {said(row, one['unit'])} ({among})"

    def write(self, run: Run) -> None:
        super().write(run)
        run.text("substructures.csv", self.tables["over_molecules"].write_csv())

    def _repr_html_(self) -> str:
        return self.to_frame()._repr_html_()


def page_row(summary: dict[str, Any], href: str | None) -> dict[str, Any]:
    """One trace of a molecule: distances to the model's value, in the target's unit, and where its page is."""
    target, circuit = summary["target"], summary["circuit"]
    return {
        "href": href,
        "target": target["name"],
        "value": target["value"],
        "description": target["description"],
        "n_features": circuit["n_features"],
        "error": circuit["error"],
        "empty_error": abs(circuit["empty"] - circuit["full"]),
        "control_error": circuit["control"]["error_mean"],
        "neuron_error": circuit["neurons"]["error"],
        "reason": circuit["reason"],
        "warnings": len(summary["warnings"]),
    }


def claims(pages: list[dict[str, Any]]) -> list[str]:
    """What holds of the rows of `page_row`, by distance to the model."""
    n, beside = len(pages), [p for p in pages if p["neuron_error"] is not None]
    found = sum(p["reason"] is None for p in pages)
    nearer = sum(p["error"] < p["neuron_error"] for p in beside)
    said = [
        f"In {found} of {n} a circuit reproduces the prediction: alone it comes nearer to the model than with every "
        f"feature ablated, and than {NEARER:.0%} of matched random circuits."
    ]
    if beside:
        said.append(f"In {nearer} of {len(beside)} it comes nearer to the model than as many neurons.")
    return said


def flat(found: list[dict[str, Any]]) -> pl.DataFrame:
    """One row per trace with the numbers a table wants."""
    rows = [
        {
            "index": t["index"],
            "input": t["input"],
            "name": t["name"],
            "value": t["target"]["value"],
            "n_features": t["circuit"]["n_features"],
            **{name: t["circuit"][name] for name in ("full", "empty", "error", "removed", "reproduces", "reason")},
            "circuit_value": t["circuit"]["value"],
            "control_error": t["circuit"]["control"]["error_mean"],
            "neuron_error": t["circuit"]["neurons"]["error"],
            "replacement_score": t["graph"]["replacement_score"],
            "warnings": len(t["warnings"]),
        }
        for t in found
    ]
    return pl.DataFrame(rows, infer_schema_length=None)
