"""What a study found: its verdict, its plots, its tables."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from html import escape
from typing import Any, ClassVar

import polars as pl

from isotrace.base.result import Result
from isotrace.base.runs import to_jsonable
from isotrace.report.card.carded import shared, tsv
from isotrace.report.lines import lines_svg
from isotrace.report.page import number, render_page, template_text
from isotrace.studies.study import Outcome, Study


class StudyResult(Result):
    """`summary`: `name`, `about`, `quick`, `tables` (name → rows), `notes`, the verdict first. Tables: the same, an
    interval as text. `view`: the `plots`."""

    kind: ClassVar[str] = "study"

    @classmethod
    def of(cls, study: Study, quick: bool, outcome: Outcome) -> "StudyResult":
        frames = {}
        for title, rows in outcome.tables.items():
            flat = [{key: cell(value) for key, value in row.items()} for row in rows]
            frames[title] = pl.DataFrame(flat, infer_schema_length=None)
        summary = {
            "name": study.name, "about": study.about, "quick": quick, "tables": dict(outcome.tables),
            "notes": list(outcome.notes),
        }  # fmt: skip
        return cls(summary, {"plots": to_jsonable([asdict(plot) for plot in outcome.plots])}, tables=frames)

    def told(self) -> Iterable[str]:
        yield f"{self.summary['name']}, {'quick' if self.summary['quick'] else 'full'} settings"
        yield from self.summary["notes"]

    def to_frame(self) -> pl.DataFrame:
        """The first table."""
        return next(iter(self.tables.values()))

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        run, title = dict(manifest or {}), self.summary["about"]
        verdict, *notes = self.summary["notes"] or [""]
        copies = {"command": run.get("command", "")} | {name: tsv(table) for name, table in self.tables.items()}
        page = {
            "title": title, "verdict": verdict, "notes": notes, **shared(run, title, verdict, copies),
            "lead": f"study {self.summary['name']} · {'quick' if self.summary['quick'] else 'full'} settings",
            "plots": [(lines_svg(plot), plot["said"]) for plot in self.view["plots"]],
            "tables": [
                (name.replace("_", " "), table.columns, [[shown(v) for v in row] for row in table.iter_rows()])
                for name, table in self.tables.items()
            ],
            "created": run.get("started", ""), "command": run.get("command", ""),
        }  # fmt: skip
        return render_page("tables.html.j2", page, script=template_text("copy.js"), data=None)

    def _repr_html_(self) -> str:
        with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=200, tbl_hide_dataframe_shape=True):
            tables = "".join(f"<h2>{escape(name)}</h2>{table._repr_html_()}" for name, table in self.tables.items())
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.summary["notes"])
        plots = "".join(map(lines_svg, self.view["plots"]))
        return f"<h1>{escape(self.summary['name'])}</h1><ul>{notes}</ul>{plots}{tables}"


def cell(value: Any) -> Any:
    """Intervals and other lists as text, for tables of one value per cell."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in value) + "]"
    return value


def shown(value: Any) -> str:
    """A cell of the page."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value) if value is None or isinstance(value, float | int) else str(value)
