"""Many pairs as people meet them: one JSON, a table with the user's own columns, and a page that lists them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import polars as pl

from isotrace.attribution.verification import NEARER
from isotrace.base.result import Result
from isotrace.base.runs import to_jsonable
from isotrace.report.card.carded import shared, tsv
from isotrace.report.page import render_page, template_text
from isotrace.report.pair.pair import PairResult, described

Own = Mapping[str, Any]
"""What else the user's table says of a row."""


@dataclass(frozen=True, eq=False, repr=False)
class Pairs(Result):
    """What `isotrace.trace(…, against=COLUMN)` found for a table. `summary["pairs"]` holds what `PairResult.to_dict`
    gives, with the `index` of its row and the user's `columns`. `found`: the results themselves, none after `load`.

    `view`: `title`, `folders` (of each, beside that of this page) and `drawings`.
    """

    kind: ClassVar[str] = "pairs"
    found: tuple[PairResult, ...] = field(default=(), repr=False)

    @classmethod
    def of(
        cls,
        title: str,
        source: Mapping[str, Any],
        found: Sequence[tuple[int, PairResult, Own]],
        folders: Sequence[str | None],
        rejects: pl.DataFrame,
    ) -> "Pairs":
        """`source`: subject, dictionary and its fidelity. `found`: with the index of the row."""
        pairs = [result.to_dict() | {"index": index, "columns": dict(own)} for index, result, own in found]
        view = {"title": title, "folders": list(folders), "drawings": [one.view["drawings"] for _, one, _ in found]}
        tables = {"pairs": flat(pairs), "rejects": rejects}
        summary = {**source, "pairs": pairs, "rejects": rejects.to_dicts()}
        return cls(to_jsonable(summary), to_jsonable(view), tables, found=tuple(one for _, one, _ in found))

    def to_frame(self) -> pl.DataFrame:
        """One row per pair, the user's own columns behind ours."""
        return self.tables["pairs"]

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        pairs, view = self.summary["pairs"], self.view
        rows = [
            one | {"drawings": drawings, "folder": folder and f"../{folder}"}
            for one, drawings, folder in zip(pairs, view["drawings"], view["folders"], strict=True)
        ]
        title, said, run = view["title"], claims(pairs), dict(manifest or {})
        copies = {"command": run.get("command", ""), "table (TSV)": tsv(self.to_frame())}
        return render_page(
            "pairs.html.j2",
            {
                **shared(run, title, said[0], copies),
                **{name: self.summary[name] for name in ("subject", "dictionary", "rejects")},
                "title": title,
                "created": run.get("started", ""),
                "sentences": said,
                "pairs": sorted(rows, key=lambda one: -abs(one["target"]["difference"] or 0.0)),
                "own": list(dict.fromkeys(name for one in pairs for name in one["columns"])),
            },
            script=template_text("copy.js"),
            data=None,
        )

    def told(self) -> Iterable[str]:
        pairs = self.summary["pairs"]
        yield f"{len(pairs)} pairs compared, {len(self.summary['rejects'])} rejected"
        for one in pairs[:3]:
            yield next(iter(described(one)))

    def _repr_html_(self) -> str:
        return self.to_frame()._repr_html_()


def claims(pairs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What holds of all of them, by distance to the second's value."""
    beside = [p["circuit"] for p in pairs if p["circuit"]["neurons"]["chosen"] is not None]
    found = sum(p["circuit"]["carries"] for p in pairs)
    said = [
        f"In {found} of {len(pairs)} a small swap carries the difference: it brings the first nearer to the second's "
        f"value than nothing does, and than {NEARER:.0%} of matched random swaps."
    ]
    if beside:
        nearer = sum(c["error"] < c["neurons"]["chosen"]["error"] for c in beside)
        said.append(f"In {nearer} of {len(beside)} it comes nearer than neurons ranked and chosen alike.")
    return said


def flat(pairs: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """One row per pair with the numbers a table wants; own columns called like one of ours get a trailing `_`."""
    rows = []
    for one in pairs:
        target, circuit = one["target"], one["circuit"]
        row = {
            "index": one["index"],
            "name": one["name"],
            "input": one["input"],
            "against": one["against"],
            "value": target["value"],
            "value_against": target["against"],
            "difference": target["difference"],
            "n_shared": one["alignment"]["n_shared"],
            "n_features": circuit["n_features"],
            "circuit_value": circuit["value"],
            "distance": circuit["error"],
            "control_distance": circuit["control"]["error_mean"],
            "control_low": circuit["control"]["error_range"][0],
            "control_high": circuit["control"]["error_range"][1],
            "neuron_distance": circuit["neurons"]["error"],
            "neuron_distance_chosen": (circuit["neurons"]["chosen"] or {}).get("error"),
            "every_distance": circuit["every"]["error"],
            "carries": circuit["carries"],
            "reason": circuit["reason"],
            "moved_changed": one["lanes"]["input"][0]["moved"] if one["lanes"]["input"][0]["n_nodes"] else None,
            "share_changed": one["lanes"]["input"][0]["share"],
            "share_changed_against": one["lanes"]["against"][0]["share"],
            "share_common": one["lanes"]["input"][1]["share"],
            "difference_sd": one["spellings"]["difference_sd"] if one["spellings"] else None,
            "warnings": len(one["warnings"]),
        }
        rows.append(row | {f"{name}_" if name in row else name: value for name, value in one["columns"].items()})
    return pl.DataFrame(to_jsonable(rows), infer_schema_length=None)
