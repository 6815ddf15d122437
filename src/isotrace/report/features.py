"""Results that are one long table: features token by token, what an intervention changes, which reactions are whole."""

from collections.abc import Mapping
from html import escape
from typing import Any, ClassVar

import polars as pl

from isotrace.base.result import Result

SHOWN = 200


class TableResult(Result):
    """`ranked`: the column by which a page shows the strongest rows of the table named like the kind."""

    ranked: ClassVar[str]

    def to_frame(self) -> pl.DataFrame:
        return self.tables[self.kind]

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        return f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{self.kind}</title>{self._repr_html_()}\n'

    def _repr_html_(self) -> str:
        frame = self.to_frame()
        best = frame.sort(self.ranked, descending=True, nulls_last=True).head(SHOWN)
        names = "".join(f"<th>{escape(name)}</th>" for name in best.columns)
        rows = ("".join(f"<td>{escape(str(value))}</td>" for value in row) for row in best.rows())
        title = f"{best.height} of {frame.height} rows, the largest {self.ranked} first"
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><caption>{title}</caption><tr>{names}</tr>{body}</table>"


class FeatureTable(TableResult):
    """`summary`: `subject`, `dictionary`, counts, `rejects`. Table `features`, one row per active feature of a token:
    `index` (row of the data), `position`, `token`, `elements` (atoms or residues that the token writes, numbered as in
    what was given), `layer`, `feature`, `activation`. A feature of a pooled hookpoint has one row per sequence, without
    position, token and elements."""

    kind, ranked = "features", "activation"


class InterventionTable(TableResult):
    """`summary`: `subject`, `plan` (its id), `n_sequences`, `mean_change`, `mean_kl` (null without a head), `rejects`.
    Table `intervention`, one row per token: `index`, `position`, `token`, `change` (length of the change of the final
    hidden state, relative to it), `kl` (nats, of the edited prediction from the clean one), `clean`, `edited` (the
    likeliest tokens)."""

    kind, ranked = "intervention", "change"


class BalanceTable(TableResult):
    """`summary`: counts, `shares` (with a null), `reactions` (the rows), `rejects`. Table `balance`, one row per
    reaction: `index`, `reaction`, and what `domains.reaction.completeness.Completeness` says of it."""

    kind, ranked = "balance", "n_nowhere"
