"""What a study found: its tables, and what the reader must know."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, ClassVar

import polars as pl

from isotrace.base.result import Result


class StudyResult(Result):
    """`summary`: `name`, `quick`, `tables` (name → rows), `notes`. Tables: the same, an interval as text."""

    kind: ClassVar[str] = "study"

    @classmethod
    def of(
        cls, name: str, quick: bool, tables: Mapping[str, list[dict[str, Any]]], notes: tuple[str, ...]
    ) -> "StudyResult":
        frames = {}
        for title, rows in tables.items():
            flat = [{key: cell(value) for key, value in row.items()} for row in rows]
            frames[title] = pl.DataFrame(flat, infer_schema_length=None)
        return cls({"name": name, "quick": quick, "tables": dict(tables), "notes": list(notes)}, tables=frames)

    def told(self) -> Iterable[str]:
        yield f"{self.summary['name']}, {'quick' if self.summary['quick'] else 'full'} settings"
        yield from self.summary["notes"]

    def to_frame(self) -> pl.DataFrame:
        """The first table."""
        return next(iter(self.tables.values()))

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(self.summary["name"])}</title>'
        return f"{head}{self._repr_html_()}\n"

    def _repr_html_(self) -> str:
        with pl.Config(tbl_rows=-1, tbl_cols=-1, fmt_str_lengths=200, tbl_hide_dataframe_shape=True):
            tables = "".join(f"<h2>{escape(name)}</h2>{table._repr_html_()}" for name, table in self.tables.items())
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.summary["notes"])
        return f"<h1>{escape(self.summary['name'])}</h1>{tables}<ul>{notes}</ul>"


def cell(value: Any) -> Any:
    """Intervals and other lists as text, for tables of one value per cell."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in value) + "]"
    return value
