"""A trial of steering as people meet it: verdict, dose and response beside random directions, designs drawn."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from html import escape
from typing import Any

import polars as pl

from isotrace.base.result import Result
from isotrace.base.runs import to_jsonable
from isotrace.datasets.inputs import rejects_frame
from isotrace.report.card.carded import shared
from isotrace.report.page import render_page, template_text
from isotrace.report.steer.designs import designs_of, drawn
from isotrace.report.steer.figure import response
from isotrace.report.steer.words import verdict, warnings
from isotrace.steering.contrast import Contrast
from isotrace.steering.trials.arm import Arm
from isotrace.steering.trials.table import dose_row, worst
from isotrace.steering.trials.trial import Trial
from isotrace.subjects.subject import Subject


class SteerResult(Result):
    """`summary` as docs/steering.md lists it; tables `designs`, `doses`, `twins` and `rejects`."""

    kind = "steer"

    def to_frame(self) -> pl.DataFrame:
        """The designs, one row each."""
        return self.tables["designs"]

    def told(self) -> Iterable[str]:
        yield self.summary["verdict"]
        yield from (f"warning: {warning}" for warning in self.summary["warnings"])

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        summary, run = self.summary, dict(manifest or {})
        title = f"Steering towards {summary['label']}"
        copies = {"verdict": summary["verdict"], "command": run.get("command", "")}
        page = summary | self.view | {
            "title": title,
            **shared(run, title, summary["verdict"], copies),
            "figure": response(summary["doses"], summary["twins"]["effects"], summary["judge"]["of"]),
            "created": run.get("started", ""),
            "command": run.get("command", ""),
        }  # fmt: skip
        return render_page("steer.html.j2", to_jsonable(page), script=template_text("copy.js"), data=None)

    def _repr_html_(self) -> str:
        figure = response(self.summary["doses"], self.summary["twins"]["effects"], self.summary["judge"]["of"])
        return f"<div>{figure}{''.join(f'<p>{escape(line)}</p>' for line in self.told())}</div>"


def steer_result(found: Trial, contrast: Contrast, subject: Subject) -> SteerResult:
    """`contrast`: all that was read."""
    plain, best, safety = found.arms[0], found.best, found.safety
    judged = dict(zip(("value", "low", "high"), found.judge.checked, strict=True))
    of = f"share of {contrast.classes[-1]}" if contrast.classes else contrast.label
    effects = [
        {"null": null, "dose": dose, "effects": found.twins.at(dose, null).tolist()}
        for null, rows in found.twins.effects.items() for dose in rows
    ]  # fmt: skip
    summary: dict[str, Any] = {
        "label": contrast.label,
        "subject": subject.source,
        "domain": found.domain.name,
        "method": found.edits.method,
        "settings": dict(found.edits.settings),
        "confounds_held": found.settings.confounds,
        "generator": plain.designs.method if plain.designs is not None else None,
        "n": {
            "sequences": len(contrast),
            "positive": len(contrast.positive),
            "negative": len(contrast.negative),
            "fitted": int((found.contrast.side != 0).sum()),
            "starts": len(found.starts),
            "development": safety.starts,
        },
        "judge": judged | {"metric": found.judge.metric, "of": of},
        "window": asdict(safety.window) | {"reader": safety.reader, "rows": [asdict(row) for row in safety.rows]},
        "claimed": None if best is None else best.dose,
        "dose": None if found.edits.dose is None else asdict(found.edits.dose),
        "doses": [row_of(found, arm) for arm in found.arms],
        "rising": found.rising,
        "twins": {"n": found.settings.n_twins, "at": found.settings.twins_at, "nulls": [*found.twins.effects],
                  "effects": effects, "lost": len(found.twins.lost), "p": found.p},
        "composition": None if found.composition is None else asdict(found.composition),
        "reaction": None if found.reaction is None else asdict(found.reaction),
        "dormant": found.dormant
        if isinstance(found.dormant, str)
        else [asdict(row) | {"flagged": row.flagged} for row in found.dormant],
        "confounds": worst(found.edits.confounds),
        "drift": worst(found.drift),
        "properties": worst(found.properties, len(found.properties)),
    }  # fmt: skip
    summary["warnings"] = warnings(found, summary)
    summary["verdict"] = verdict(found, of)
    rejects = rejects_frame(list(found.rejects))
    summary |= {"rejects": rejects.head(20).to_dicts(), "n_rejected": rejects.height}
    doses = [{name: value for name, value in row.items() if name != "ci"} for row in summary["doses"]]
    tables = {
        "designs": pl.concat([designs_of(found, arm) for arm in found.arms if arm.designs is not None]),
        "doses": pl.DataFrame(doses, infer_schema_length=None),
        "twins": pl.DataFrame(
            [(null, dose, number, effect) for null, rows in found.twins.effects.items() for dose, row in rows.items()
             for number, effect in enumerate(row)],
            schema={"null": pl.String, "dose": pl.Float64, "twin": pl.Int64, "effect": pl.Float64}, orient="row",
        ),
        "rejects": rejects,
    }  # fmt: skip
    return SteerResult(to_jsonable(summary), to_jsonable({"drawn": drawn(found, subject)}), tables)


def row_of(found: Trial, arm: Arm) -> dict[str, Any]:
    """Of a dose: its designs, its twins, and whether it is inside the safe window; None where it was not reached."""
    safe = None if arm.designs is None else found.safety.holds(arm.dose)
    return dose_row(arm, found.settings.seed) | found.twins.beside(arm) | {"safe": safe}
