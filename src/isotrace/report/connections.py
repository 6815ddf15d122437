"""What one feature is connected to, over many inputs."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, ClassVar

import polars as pl

from isotrace.base.result import Result
from isotrace.report.card.carded import shared, tsv
from isotrace.report.lines import lines_svg
from isotrace.report.page import render_page, template_text

RELATIONS = {
    "reads": "reads, at its own token",
    "follows": "follows, at other tokens through a head",
    "writes": "writes, to features of later layers",
    "promotes": "promotes, by the direct way to the logits",
}


class ConnectionsResult(Result):
    """`summary`: `subject`, `dictionary`, `layer`, `feature`, `label`, `n_sequences`, `n_tokens`, `density`, `mean` and
    `deviation` of the pre-activation, `shares` of each term in its variance, `kinds_of_token`, `ablated` (tokens that
    annotate found to gain and lose), `connections` (the rows), `warnings`, `rejects`. Table `connections`, one row per
    edge, see docs/features.md."""

    kind: ClassVar[str] = "connections"

    def to_frame(self) -> pl.DataFrame:
        return self.tables[self.kind]

    @property
    def name(self) -> str:
        own = f"{self.summary['layer']}.{self.summary['feature']}"
        return own if self.summary["label"] is None else f"{own} ({self.summary['label']})"

    def told(self) -> Iterable[str]:
        above = self.to_frame().filter("above_null").height
        yield f"feature {self.name} of {self.summary['dictionary']}: {above} connections above their null"

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        run, title = dict(manifest or {}), f"Feature {self.name}"
        verdict, *notes = described(self.summary)
        page = {
            "title": title, "verdict": verdict, "notes": [*notes, *self.summary["warnings"], READING],
            "lead": f"{self.summary['dictionary']} on {self.summary['subject']}",
            **shared(run, title, verdict, {"command": run.get("command", ""), "table": tsv(self.to_frame())}),
            "plots": [(lines_svg(plot), plot["said"]) for plot in plots(self.summary)],
            "tables": [
                (title, COLUMNS, rows) for name, title in RELATIONS.items() if (rows := rows_of(self.summary, name))
            ],
            "created": run.get("started", ""), "command": run.get("command", ""),
        }  # fmt: skip
        return render_page("tables.html.j2", page, script=template_text("copy.js"), data=None)

    def _repr_html_(self) -> str:
        parts = [f"<p>{escape(line)}</p>" for line in described(self.summary)]
        for relation, title in RELATIONS.items():
            rows = rows_of(self.summary, relation)
            if rows:
                head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
                body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
                parts.append(f"<table><caption>{escape(title)}</caption><tr>{head}</tr>{body}</table>")
        return "".join(parts)


READING = (
    "gives: in standard deviations of the pre-activation of the feature that reads, on average when it fires; to "
    "tokens in logits. *: above the null, the same with decoder rows in another order; p: of features about as dense, "
    "the share that would give as much in its place."
)
COLUMNS = ("from or to", "name", "by", "gives [95 % CI]", "null", "p", "at")


def plots(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of every relation to features: what each gives with its interval, and the null on both sides."""
    made = []
    for relation, title in RELATIONS.items():
        rows = [r for r in summary["connections"] if r["relation"] == relation and r.get("threshold") is not None]
        rows = [row for row in rows if row.get("token") is None and row.get("ci_low") is not None]
        if len(rows) < 2:
            continue
        x = [float(i) for i in range(1, len(rows) + 1)]
        gives, null, low, high = ([row[key] for row in rows] for key in ("gives", "threshold", "ci_low", "ci_high"))
        dots: dict[str, Any] = {"dots": True, "low": None, "high": None}
        lines = [
            dots | {"name": "gives, 95 % interval", "x": x, "y": gives, "low": low, "high": high},
            dots | {"name": "null", "x": x * 2, "y": [*null, *(-value for value in null)]},
        ]
        said = "Rows of the table below in their order."
        made.append({"title": title, "x": "row", "y": "standard deviations", "lines": lines, "said": said})
    return made


def rows_of(summary: Mapping[str, Any], relation: str) -> list[tuple[str, ...]]:
    """Cells of the rows of one relation, as COLUMNS: what an edge gives in standard deviations of the pre-activation,
    or, to tokens, in logits; a star where it lies above its null, and the share `p` of features about as dense that
    would give as much in its place."""
    found = []
    for row in (row for row in summary["connections"] if row["relation"] == relation):
        token, offset = row.get("token"), row.get("offset")
        end = f"token {token}" if token is not None else f"{row['layer']}.{row['feature']}"
        gives = f"{row['gives']:+.3f}" + (
            "" if row.get("ci_low") is None else f" [{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]"
        )
        null = "" if row.get("threshold") is None else f"{row['threshold']:.3f}" + ("*" if row["above_null"] else "")
        at = "" if offset is None else f"{offset:+d} ({row['offset_share']:.0%})"
        p = "" if row.get("p") is None else f"{row['p']:.3f}"
        found.append((end, row.get("label") or "", row["route"], gives, null, p, at))
    return found


def described(summary: Mapping[str, Any]) -> list[str]:
    """What a reader asks for first, a line each."""
    name = f"{summary['layer']}.{summary['feature']}"
    label = "" if summary["label"] is None else f" ({summary['label']})"
    lines = [
        f"feature {name}{label}, active at {summary['density']:.2%} of {summary['n_tokens']:,} tokens of "
        f"{summary['n_sequences']:,} sequences"
    ]
    share, heads = dict(summary["shares"]), 0.0
    for term in [term for term in share if term.startswith("head ")]:
        heads += share.pop(term)
    parts = ", ".join(f"{term} {value:.0%}" for term, value in (share | {"heads": heads}).items())
    lines.append(f"shares of the variance of its pre-activation: {parts}")
    for kind in summary["kinds_of_token"]:
        own = "" if kind["share"] is None else f", {kind['share']:.0%} of the variance within them is the tokens' own"
        lines.append(
            f"at {kind['n']:,} tokens of kind {kind['kind']}: pre-activation {kind['preactivation']:+.2f} sd from the "
            f"mean, the tokens by themselves {kind['gives']:+.2f}{own}"
        )
    return lines
