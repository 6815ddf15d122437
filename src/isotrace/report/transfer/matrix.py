"""What `isotrace transfer` found: outcomes as a heat map, ceilings, and predictors with what their choice costs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np
import polars as pl

from isotrace.base.result import Result
from isotrace.base.runs import to_jsonable
from isotrace.domains.domain import Domain
from isotrace.report.card.carded import shared
from isotrace.report.figures import COLOURS, GREY, dot, path, picture, reach, scale, text, ticks
from isotrace.report.page import interval, number, render_page, template_text
from isotrace.transfer.judging.judge import Estimate, Judged
from isotrace.transfer.judging.matrix import ranks
from isotrace.transfer.measuring.judgement import CONSTANT, PROBE, Judgement, shortfall
from isotrace.transfer.measuring.measure import Measured
from isotrace.transfer.measuring.settings import MeasureSettings

CELL, ROW, NAMES, HEAD = 46, 20, 190, 120


class TransferResult(Result):
    """`summary` as docs/transfer.md lists it; tables `outcomes`, `scores`, `tasks`, `predictors`."""

    kind = "transfer"

    def to_frame(self) -> pl.DataFrame:
        """A row per checkpoint, task, method, seed and metric."""
        return self.tables["outcomes"]

    def told(self) -> Iterable[str]:
        yield self.summary["verdict"]
        for row in self.summary["predictors"]:
            yield f"{row['name']}: Spearman {number(row['spearman']['value'])} {interval(row['spearman']['ci'])}"

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        run, verdict = dict(manifest or {}), self.summary["verdict"]
        title = "Which checkpoint transfers"
        page = self.summary | {
            "title": title,
            **shared(run, title, verdict, {"verdict": verdict, "command": run.get("command", "")}),
            "heat": heat_map(self.summary["checkpoints"], self.summary["tasks"], self.view["y"]),
            "foretold": foretold(self.view["pairs"], self.summary["shown"]),
            "created": run.get("started", ""),
            "command": run.get("command", ""),
        }
        return render_page("transfer.html.j2", to_jsonable(page), script=template_text("copy.js"), data=None)

    def _repr_html_(self) -> str:
        heat = heat_map(self.summary["checkpoints"], self.summary["tasks"], self.view["y"])
        return f"<div>{heat}<p>{escape(self.summary['verdict'])}</p></div>"


def transfer_result(
    found: Judgement, measured: Sequence[Measured], frame: pl.DataFrame, settings: MeasureSettings, domain: Domain
) -> TransferResult:
    """`frame`: the table of outcomes."""
    matrix, metrics = found.matrix, {one.task: one.metric for one in measured}
    rows = {one.task: len(one.y) for one in measured}
    tasks = [
        {
            "name": task, "group": matrix.groups[j], "metric": metrics[task], "forest": float(found.forest[j]),
            "best": matrix.checkpoints[int(np.nanargmax(matrix.y[:, j]))], "test_rows": rows[task],
            "range": [float(np.nanmin(matrix.y[:, j])), float(np.nanmax(matrix.y[:, j]))],
            "ceiling": {"value": ceiling.value, "ci": [ceiling.low, ceiling.high]}, "apart": ceiling.apart,
            "why": ceiling.reason,
        }
        for j, (task, ceiling) in enumerate((task, found.ceilings[task]) for task in matrix.tasks)
    ]  # fmt: skip
    predictors = sorted((_row(one, found) for one in found.judged), key=lambda row: -_order(row["spearman"]["value"]))
    best = found.best
    shown = best.predictor if best is not None else CONSTANT
    scores = next(one.scores for one in found.predictors if one.name == shown)
    foretold_by = ranks(scores)
    y = ranks(matrix.y)
    summary: dict[str, Any] = {
        "domain": domain.name,
        "method": settings.method,
        "n": {"checkpoints": len(matrix.checkpoints), "families": len({*matrix.families}), "tasks": len(tasks),
              "groups": len({*matrix.groups}), "seeds": settings.n_seeds, "labels": settings.n_train,
              "test": settings.n_test},
        "checkpoints": list(matrix.checkpoints),
        "families": list(matrix.families),
        "tasks": tasks,
        "predictors": predictors,
        "shown": shown,
        "mean_rank": dict(zip(matrix.checkpoints, np.nanmean(y, 1).tolist(), strict=True)),
        "above_forest": {t["name"]: int(np.nansum(matrix.y[:, j] > found.forest[j])) for j, t in enumerate(tasks)},
        "rejects": [],
    }  # fmt: skip
    summary["verdict"] = verdict(found, predictors)
    pairs = [
        {"task": task, "apart": tasks[j]["apart"], "x": float(foretold_by[i, j]), "y": float(y[i, j])}
        for j, task in enumerate(matrix.tasks) for i in range(len(matrix.checkpoints))
    ]  # fmt: skip
    said = [
        {"checkpoint": checkpoint, "task": one.task, "seed": seed, **asdict(row)}
        for one in measured for (checkpoint, seed), told in one.scores.items() for row in told
    ]  # fmt: skip
    flat = {"name": pl.String, "group": pl.String, "metric": pl.String, "forest": pl.Float64, "apart": pl.Boolean}
    tables = {
        "outcomes": frame,
        "scores": pl.DataFrame(said, infer_schema_length=None),
        "tasks": pl.DataFrame(
            [{name: row[name] for name in flat} | {"ceiling": row["ceiling"]["value"]} for row in tasks]
        ),
        "predictors": pl.DataFrame([
            {"name": row["name"], "verdict": row["verdict"]}
            | {name: row[name]["value"] for name in ("spearman", "kendall", "regret_1", "regret_3", "share")}
            for row in predictors
        ]),
    }  # fmt: skip
    return TransferResult(summary, {"y": y.tolist(), "pairs": pairs}, tables)


def verdict(found: Judgement, predictors: Sequence[Mapping[str, Any]]) -> str:
    """The plain sentence."""
    rows, best = {row["name"]: row for row in predictors}, found.best
    if best is None:
        return "No predictor can be told from another: no task's checkpoints differ by more than their noise."
    first = rows[best.predictor]
    order = f"{number(first['spearman']['value'])} {interval(first['spearman']['ci'])}"
    share, regret = number(first["share"]["value"]), number(first["regret_1"]["value"])
    said = f"Best order: {best.predictor}, Spearman {order}, {share} of the ceiling, regret {regret}"
    if PROBE not in rows:
        return f"{said}. The cross-validated probe was not asked."
    if best.predictor == PROBE:
        return f"{said}. Use that: no other predictor comes up to cross-validating the probe."
    probe, why = rows[PROBE], shortfall(best, found.against[best.predictor])
    order, regret = number(probe["spearman"]["value"]), number(probe["regret_1"]["value"])
    beside = f"the cross-validated probe {order}, regret {regret}"
    if not why:
        return f"{said}; {beside}. It is better than the probe."
    return f"{said}; {beside}. Use the probe: the other falls short of the rule that was set before ({why})."


def _row(one: Judged, found: Judgement) -> dict[str, Any]:
    against = found.against.get(one.predictor)
    return {
        "name": one.predictor,
        **{name: _estimate(estimate) for name, estimate in one.means.items()},
        "seconds": one.seconds,
        "flops": one.flops,
        "verdict": "" if against is None else against.verdict,
        "beyond_probe": None if against is None else _estimate(against.by["spearman"]),
        "flops_of_probe": None if against is None else against.times_flops,
    }


def _estimate(one: Estimate) -> dict[str, Any]:
    return {"value": one.value, "ci": list(one.over_groups), "over_families": list(one.over_families)}


def _order(value: float) -> float:
    return value if np.isfinite(value) else -np.inf


def heat_map(checkpoints: Sequence[str], tasks: Sequence[Mapping[str, Any]], y: Sequence[Sequence[float]]) -> str:
    """SVG: the rank of every checkpoint (row) on every task (column), dark the best; the best mean first."""
    values = np.asarray([[np.nan if v is None else v for v in row] for row in y], float)
    order = np.argsort(-np.nanmean(values, 1))
    width, height = NAMES + CELL * len(tasks) + 70, HEAD + ROW * len(checkpoints) + 10
    parts = []
    for j, task in enumerate(tasks):
        x = NAMES + CELL * j + CELL / 2
        name = task["name"] if len(task["name"]) < 19 else f"{task['name'][:17]}…"
        turned = text(0, 0, str(name), "start", size=12)
        parts.append(f'<g transform="translate({x:.0f} {HEAD - 8}) rotate(-50)">{turned}</g>')
    for place, i in enumerate(order):
        top = HEAD + ROW * place
        name = checkpoints[i] if len(checkpoints[i]) < 27 else f"…{checkpoints[i][-25:]}"
        parts.append(text(NAMES - 8, top + 15, str(name), "end", size=12))
        for j, task in enumerate(tasks):
            value = values[i, j]
            if not np.isfinite(value):
                continue
            said = f"{checkpoints[i]}, {task['name']}: rank {value:.2f}{', apart' if task['apart'] else ''}"
            shade = 'fill-opacity="0.35"' if task["apart"] else ""
            parts.append(
                f'<rect x="{NAMES + CELL * j + 1}" y="{top + 1}" width="{CELL - 2}" height="{ROW - 2}" '
                f'fill="{_colour(float(value))}" {shade}><title>{escape(said)}</title></rect>'
            )
    return picture(width, height, "rank of checkpoints on tasks", parts, "heat", fixed=True)


def _colour(value: float) -> str:
    """From pale to dark blue."""
    ends = ((237, 242, 247), (23, 78, 134))
    return "#" + "".join(f"{round(a + (b - a) * value):02x}" for a, b in zip(*ends, strict=True))


def foretold(pairs: Sequence[Mapping[str, Any]], name: str) -> str:
    """SVG: the rank foretold and observed of every checkpoint on every task; grey where outcomes are noise."""
    known = [p for p in pairs if p["x"] is not None and p["y"] is not None and p["x"] == p["x"] and p["y"] == p["y"]]
    low, high = reach([0.0, 1.0])
    across, down = scale(low, high, 70, 400), scale(low, high, 360, 16)
    parts = [path([(across(0), down(0)), (across(1), down(1))], GREY, 'stroke-dasharray="4 4"')]
    for v in ticks(0, 1, 6):
        parts += [text(across(v), 380, number(v), "middle", size=12), text(62, down(v) + 4, number(v), "end", size=12)]
    rng = np.random.default_rng(0)
    for p in known:
        x, y = (v + 0.012 * rng.normal() for v in (p["x"], p["y"]))  # ranks lie on top of each other
        parts.append(dot(across(x), down(y), GREY if p["apart"] else COLOURS[0], p["task"], 2.5))
    parts.append(text(235, 400, f"rank by {name}", "middle", size=13))
    parts.append(f'<g transform="translate(14 190) rotate(-90)">{text(0, 0, "rank observed", "middle", size=13)}</g>')
    return picture(416, 408, "foretold and observed", parts, "curve")
