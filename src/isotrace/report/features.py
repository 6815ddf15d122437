"""Feature activations as people meet them: one long table."""

from collections.abc import Mapping
from html import escape
from typing import Any

import polars as pl

from isotrace.base.result import Result

SHOWN = 200


class FeatureTable(Result):
    """`summary`: `subject`, `dictionary`, counts, `rejects`. Table `features`, one row per active feature of a token:
    `index` (row of the data), `position`, `token`, `elements` (atoms or residues that the token writes, numbered as in
    what was given), `layer`, `feature`, `activation`."""

    kind = "features"

    def to_frame(self) -> pl.DataFrame:
        return self.tables["features"]

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Features</title>{self._repr_html_()}\n'

    def _repr_html_(self) -> str:
        best = self.to_frame().sort("activation", descending=True).head(SHOWN)
        names = "".join(f"<th>{escape(name)}</th>" for name in best.columns)
        rows = ("".join(f"<td>{escape(str(value))}</td>" for value in row) for row in best.rows())
        title = f"The {best.height} strongest of {self.summary['n_active']} activations"
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><caption>{title}</caption><tr>{names}</tr>{body}</table>"
