"""What `isotrace probe` found: performance beside its baselines, every row's prediction, and the probe itself."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np
import polars as pl

from isotrace.base.result import Result
from isotrace.base.runs import Run, to_jsonable
from isotrace.datasets.inputs import rejects_frame
from isotrace.datasets.reading.cells import free_names
from isotrace.datasets.replicates import Cleaned
from isotrace.domains.domain import Domain
from isotrace.probing.crossed import probabilities
from isotrace.probing.probe import Probed, about
from isotrace.probing.validity import validity
from isotrace.report.card.carded import shared
from isotrace.report.figures import COLOURS, GREY, GRID, INK, dot, path, picture, reach, scale, text, ticks
from isotrace.report.page import interval, number, render_page, template_text
from isotrace.subjects.probe import Probe, ProbeConfig
from isotrace.subjects.subject import Subject

SOURCES = {
    "subject": "the subject, read by the probe",
    "untrained": "an untrained copy of the subject, read in the same way",
    "tokens": "how often each token stands in the sequence",
    "forest": "a random forest on fingerprints ({fingerprint})",
    "constant": "the mean of the labels, whatever the sequence",
}
WIDTH, HEIGHT = 480, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 466, 16, 306
DOTS = 3_000


class ProbeResult(Result):
    """`summary` as docs/probe.md lists it; tables `predictions` and `rejects`; tensors `weight`, `bias` of the probe,
    which `probe.json` beside them describes."""

    kind = "probing"
    tensor_file = "probe"

    @property
    def probe(self) -> Probe:
        return Probe(ProbeConfig(**self.view["probe"]), self.tensors["weight"], self.tensors["bias"])

    def to_frame(self) -> pl.DataFrame:
        """A row per sequence: what was given, what was measured, what the probe says."""
        return self.tables["predictions"]

    def write(self, run: Run) -> None:
        super().write(run)
        run.json("probe", self.view["probe"])
        flat = [name for name, kind in self.to_frame().schema.items() if not kind.is_nested()]
        run.text("predictions.csv", self.to_frame().select(flat).write_csv())

    def told(self) -> Iterable[str]:
        yield self.summary["verdict"]
        metric = self.summary["metrics"][0]
        for source, row in self.summary["performance"].items():
            yield f"{source}: {metric} {number(row[metric]['value'])} {interval(row[metric]['ci'])}"

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        sources = {s: t.format(fingerprint=self.summary["fingerprint"]) for s, t in SOURCES.items()}
        title, run = f"Does the subject know {self.summary['label']}?", dict(manifest or {})
        verdict = self.summary["verdict"]
        page = self.summary | {
            "title": title,
            **shared(run, title, verdict, {"verdict": verdict, "command": run.get("command", "")}),
            "sources": sources,
            "pictures": self._pictures(),
            "created": run.get("started", ""),
            "command": run.get("command", ""),
            "rows": self._extreme(),
        }
        return render_page("probe.html.j2", to_jsonable(page), script=template_text("copy.js"), data=None)

    def _extreme(self) -> list[dict[str, Any]]:
        """Of numbers, the rows furthest from what was measured."""
        frame = self.to_frame()
        if "error" not in frame.columns:
            return []
        worst = frame.filter(pl.col("error").is_finite()).sort(pl.col("error").abs(), descending=True).head(10)
        return worst.select("index", "name", "sequence", "measured", "predicted", "error").to_dicts()

    def _pictures(self) -> list[tuple[str, str]]:
        pictures, frame = [], self.to_frame()
        if "error" in frame.columns:
            pairs = frame.filter(pl.col("held_out")).select("measured", "predicted").rows()[:DOTS]
            said = "Every sequence as predicted by a readout that had not seen its group, over what was measured."
            pictures.append((scatter(pairs, self.summary["unit"]), said))
        if len(self.summary["curve"]) > 1:
            said = "The same with fewer groups to learn from; where it still moves, more data would help."
            pictures.append((curve_svg(self.summary["curve"], self.summary["metrics"][0]), said))
        return pictures

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in self.told())
        return f"<div>{''.join(svg for svg, _ in self._pictures()[:1])}{lines}</div>"


def scatter(pairs: list[tuple[float, float]], unit: str) -> str:
    low, high = reach([v for pair in pairs for v in pair])
    across, down = scale(low, high, LEFT, RIGHT), scale(low, high, BOTTOM, TOP)
    parts = axes(low, high, low, high, f"measured, {unit}")
    parts.append(path([(across(low), down(low)), (across(high), down(high))], GREY))
    parts += [dot(across(x), down(y), COLOURS[0], f"{x:.3g} → {y:.3g}", 2) for x, y in pairs]
    return picture(WIDTH, HEIGHT, "predicted over measured", parts, "scatter")


def curve_svg(points: list[tuple[float, float]], metric: str) -> str:
    (low_x, high_x), (low, high) = reach([0.0, *(x for x, _ in points)]), reach([y for _, y in points])
    across, down = scale(low_x, high_x, LEFT, RIGHT), scale(low, high, BOTTOM, TOP)
    parts = axes(low_x, high_x, low, high, f"rows it was fitted on; {metric} of rows held out")
    line = [(across(x), down(y)) for x, y in points]
    parts.append(path(line, COLOURS[0], 'stroke-width="2"'))
    parts += [dot(x, y, COLOURS[0], f"{n:.0f}: {v:.3g}", 4) for (x, y), (n, v) in zip(line, points, strict=True)]
    return picture(WIDTH, HEIGHT, "learning curve", parts, "curve")


def axes(low_x: float, high_x: float, low: float, high: float, words: str) -> list[str]:
    across, down = scale(low_x, high_x, LEFT, RIGHT), scale(low, high, BOTTOM, TOP)
    parts = []
    for value in ticks(low, high, 6):
        parts.append(path([(LEFT, down(value)), (RIGHT, down(value))], GRID))
        parts.append(text(LEFT - 8, down(value) + 5, number(value), "end"))
    for value in ticks(low_x, high_x, 6):
        parts.append(path([(across(value), BOTTOM), (across(value), BOTTOM + 5)], INK))
        parts.append(text(across(value), BOTTOM + 20, number(value), "middle"))
    return [
        *parts,
        path([(LEFT, BOTTOM), (RIGHT, BOTTOM)], INK),
        text((LEFT + RIGHT) / 2, HEIGHT - 10, words, "middle"),
    ]


def probe_result(found: Probed, subject: Subject, domain: Domain, table: Cleaned) -> ProbeResult:
    config = found.probe.config
    rejects = rejects_frame(found.data.rejects)
    used = {
        "salts": "counter-ions stripped", "decimal_commas": "decimal commas read as points",
        "repeats": f"rows joined with another of the same {domain.name}",
    }  # fmt: skip
    summary = {
        "subject": subject.source,
        "label": found.data.label,
        "task": config.task,
        "classes": list(found.data.classes),
        "unit": config.unit,
        "layers": list(config.layers),
        "pool": config.pool,
        "split": found.split,
        "strength": found.strength,
        "rows_are": f"{domain.element}s" if config.pool == "token" else "sequences",
        "fingerprint": domain.fingerprint,
        "n": {
            "rows": len(found.y), "sequences": len(found.data.examples), "held_out": int(found.held.sum()),
            "groups": len({e.group for e in found.data.examples}), "rejected": rejects.height,
        },
        "labels": labels(found),
        **about(found),
        "calibration": calibration(found),
        "curve": [list(point) for point in found.curve],
        "validity": [] if found.fingerprints is None else validity(found),
        "cleaned": {used[name]: n for name, n in table.counts.items() if n},
        "repeats_sd": table.spread,
        "warnings": warnings(found),
        "rejects": rejects.head(20).to_dicts(),
        "n_rejected": rejects.height,
    }  # fmt: skip
    tables = {"predictions": predictions(found, table), "rejects": rejects}
    tensors = {"weight": found.probe.weight, "bias": found.probe.bias}
    return ProbeResult(to_jsonable(summary), {"probe": asdict(config)}, tables, tensors)


def labels(found: Probed) -> dict[str, Any]:
    if found.probe.task == "regression":
        low, high = np.quantile(found.y, [0.025, 0.975]).tolist()
        return {"mean": float(found.y.mean()), "sd": float(found.y.std()), "central_95": [low, high]}
    names = found.data.classes or ("0", "1")
    return {name: int((found.y == k).sum()) for k, name in enumerate(names)}


def calibration(found: Probed) -> dict[str, float] | None:
    """Of classes: Brier's score (mean squared distance of the probabilities to the truth) of rows held out, and that
    of always giving the classes' shares."""
    if found.probe.task == "regression":
        return None
    p, y = probabilities(found.outputs["subject"][found.held]), found.y[found.held].astype(int)
    truth = np.eye(p.shape[1])[y]
    return {
        "brier": float(((p - truth) ** 2).sum(1).mean()),
        "brier_of_shares": float(((truth.mean(0) - truth) ** 2).sum(1).mean()),
    }


def warnings(found: Probed) -> list[str]:
    said, metric = [], found.metrics[0]
    if int(found.held.sum()) < 100:
        said.append(f"only {int(found.held.sum())} rows are predicted: intervals are wide, and may be too narrow still")
    if "forest" in found.outputs and found.better(found.scores(metric, "forest"))[2] < 0:
        said.append("a forest on fingerprints predicts this better: explain the subject, but decide by the forest")
    if "tokens" in found.outputs and not found.better(found.scores(metric, "tokens"))[1] > 0:
        said.append("counting tokens predicts this as well: what is explained may be composition alone")
    return said


def predictions(found: Probed, table: Cleaned) -> pl.DataFrame:
    """One row per sequence, in the order of the input, with the user's own columns."""
    rows, outputs = [], found.outputs["subject"]
    token = found.probe.config.pool == "token"
    for i, example in enumerate(found.data.examples):
        own = np.flatnonzero(found.places == i)
        row: dict[str, Any] = {"index": example.index, "group": example.group, "held_out": bool(found.held[own].all())}
        shown = outputs[own] if row["held_out"] else np.full((len(own), outputs.shape[1]), np.nan)
        if token:
            row |= {"predicted": probabilities(shown)[:, 1].tolist()}
        elif found.probe.task == "regression":
            value = float(shown[0, 0])
            row |= {"measured": float(found.y[own[0]]), "predicted": value, "error": value - float(found.y[own[0]])}
        else:
            shares = probabilities(shown)[0]
            known = np.isfinite(shares).all()
            row |= {"measured": found.data.classes[int(found.y[own[0]])]}
            row |= {"predicted": found.data.classes[int(shares.argmax())] if known else None}
            row |= {f"p_{name}": float(share) for name, share in zip(found.data.classes, shares, strict=True)}
        rows.append(row)
    found_frame = pl.DataFrame(rows, infer_schema_length=None)
    given = table.rows.drop("original", strict=False)
    other = [name for name in given.columns if name not in ("index", "name", "sequence")]
    given = given.rename(free_names(other, {*found_frame.columns, "name", "sequence"}))
    return given.join(found_frame, on="index", how="inner").sort("index")
