"""What `isotrace adapt` found: the method beside its baselines, the learning curves, every prediction."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from html import escape
from typing import Any

import numpy as np
import polars as pl

from isotrace.base.result import Result
from isotrace.base.runs import to_jsonable
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.domains.domain import Domain
from isotrace.probing.crossed import probabilities
from isotrace.report.card.carded import shared
from isotrace.report.figures import COLOURS, dot, path, picture, reach, scale, text
from isotrace.report.page import interval, number, render_page, template_text
from isotrace.report.probe import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, axes
from isotrace.report.transfer import reuse as reused
from isotrace.stats.bootstrap import valued
from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.comparison import Compared
from isotrace.transfer.adapting.saving import probe_names
from isotrace.transfer.adapting.scoring import gain, metrics_of
from isotrace.transfer.adapting.settings import AdaptSettings
from isotrace.transfer.reuse.reuse import Reuse

SAID = {
    "probe": "probe of the final layer",
    "probe_all": "probe of all layers",
    "lora": "adapters (LoRA)",
    "full": "all weights trained",
    "scratch": "all weights trained, from random ones",
    "untrained": "probe of an untrained copy",
    "forest": "random forest on fingerprints",
}


class AdaptResult(Result):
    """`summary` as docs/transfer.md lists it; tables `predictions`, `curves` and `rejects`, `matrices` where weights
    were changed, and `reuse` with a dictionary."""

    kind = "adapt"

    def to_frame(self) -> pl.DataFrame:
        """A row per method and property: metrics of the test part, intervals as text."""
        rows = [
            {"method": row["method"], "label": row["label"], "weights": row["weights"]}
            | {name: f"{number(m['value'])} {interval(m['ci'])}" for name, m in row["metrics"].items()}
            for row in self.summary["table"]
        ]
        return pl.DataFrame(rows, infer_schema_length=None)

    def told(self) -> Iterable[str]:
        yield self.summary["verdict"]
        for row in (self.summary["reuse"] or {"labels": {}})["labels"].values():
            yield row["verdict"]
        for row in self.summary["table"]:
            metric, value = next(iter(row["metrics"].items()))
            yield f"{row['label']}, {row['method']}: {metric} {number(value['value'])} {interval(value['ci'])}"

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        run, verdict = dict(manifest or {}), self.summary["verdict"]
        title = f"{self.summary['subject']}, adapted to {', '.join(self.summary['labels'])}"
        page = self.summary | {
            "title": title,
            **shared(run, title, verdict, {"verdict": verdict, "command": run.get("command", "")}),
            "said": SAID,
            "pictures": self._pictures(),
            "reuse_said": reused.SAID,
            "reuse_pictures": reused.pictures(self.summary["reuse"]) if self.summary["reuse"] else [],
            "created": run.get("started", ""),
            "command": run.get("command", ""),
        }
        return render_page("adapt.html.j2", to_jsonable(page), script=template_text("copy.js"), data=None)

    def _pictures(self) -> list[tuple[str, str]]:
        curves = self.tables["curves"]
        return [
            (learning_curves(own), f"{SAID.get(str(name), name)}: loss over steps; line: validation, dots: training.")
            for (name,), own in curves.group_by("method", maintain_order=True)
        ]

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{escape(line)}</p>" for line in self.told())
        return f"<div>{''.join(svg for svg, _ in self._pictures()[:1])}{lines}</div>"


def learning_curves(rows: pl.DataFrame) -> str:
    """SVG of `method, seed, step, train, valid`: a colour per seed. What towers over nine tenths of the points runs
    along the upper edge."""
    values = np.concatenate([rows["train"].to_numpy(), rows["valid"].to_numpy()])
    low, high = reach([0.0, float(np.quantile(values, 0.9))])
    last = float(rows["step"].cast(pl.Float64).to_numpy().max())
    across, down = scale(0.0, last, LEFT, RIGHT), scale(low, high, BOTTOM, TOP)
    parts = axes(0.0, last, low, high, "steps")
    for i, ((seed,), own) in enumerate(rows.group_by("seed", maintain_order=True)):
        colour, steps = COLOURS[i % len(COLOURS)], own["step"].to_list()
        line = [(across(x), down(min(high, y))) for x, y in zip(steps, own["valid"].to_list(), strict=True)]
        parts.append(path(line, colour, 'stroke-width="2"'))
        parts += [
            dot(across(x), down(min(high, y)), colour, f"step {x}: {y:.3g}", 2)
            for x, y in zip(steps, own["train"].to_list(), strict=True)
        ]
        parts.append(text(RIGHT, TOP + 16 * (i + 1), f"seed {seed}", "end", size=12))
    return picture(WIDTH, HEIGHT, "learning curves", parts, "curve")


def adapt_result(
    found: Compared, subject: Subject, domain: Domain, settings: AdaptSettings, all_outputs: np.ndarray, *,
    reuse: Reuse | None = None, dictionary: str = "", names: FeatureTables | None = None,
    matrices: pl.DataFrame | None = None, beside: Sequence[str] = (),
) -> AdaptResult:  # fmt: skip
    """`all_outputs [rows, outputs]` of every row of the table, by the first seed. `reuse`: read in what is called
    `dictionary`, with the `names` of its features. `matrices`: of weights that changed. `beside`: more warnings."""
    table = found.part.table
    rows, first = [], table.properties[0]
    for prop in table.properties:
        main = metrics_of(prop)[0]
        own = found.draws[found.method][prop.label][main]
        for name, entry in found.entries.items():
            draws = found.draws[name][prop.label]
            adapted = entry.adapted
            rows.append({
                "method": name, "label": prop.label,
                "metrics": {metric: valued(values) for metric, values in draws.items()},
                "better_by": None if name == found.method else gain(own, draws[main], main),
                "seeds": len(entry.outputs), "weights": None if adapted is None else adapted.n_trained,
                "chosen": "" if adapted is None else adapted.chosen, "seconds": round(entry.seconds, 1),
            })  # fmt: skip
    members = {part: len(table.members(part)) for part in ("train", "valid", "test")}
    test = table.rows("test")
    summary = {
        "subject": subject.source,
        "labels": [prop.label for prop in table.properties],
        "kinds": [prop.kind for prop in table.properties],
        "classes": {prop.label: list(prop.classes) for prop in table.properties if prop.classes},
        "method": found.method,
        "domain": domain.name,
        "n": members | {
            "labels": {p.label: int(np.isfinite(table.y[:, t]).sum()) for t, p in enumerate(table.properties)},
            "test_groups": len(np.unique(table.groups[test])), "rejected": table.rejects.height,
        },
        "settings": asdict(settings),
        "table": rows,
        "verdict": verdict(rows, found.method, first.label, metrics_of(first)[0]),
        "targets": [f"probe:{name}" for name in probe_names(table)],
        "cleaned": table.notes,
        "reuse": None if reuse is None else reused.reuse_summary(reuse, found, dictionary, names or FeatureTables()),
        "matrices": None if matrices is None else reused.matrices_summary(matrices),
        "warnings": [*warnings(found), *beside],
        "rejects": table.rejects.head(20).to_dicts(),
        "n_rejected": table.rejects.height,
    }  # fmt: skip
    curves = [
        {"method": name, "seed": seed, "step": p.step, "train": p.train, "valid": p.valid}
        for name, entry in found.entries.items()
        for seed, points in enumerate(entry.curves)
        for p in points
    ]
    schema = {"method": pl.String, "seed": pl.Int64, "step": pl.Int64, "train": pl.Float64, "valid": pl.Float64}
    tables = {
        "predictions": predictions(found, all_outputs),
        "curves": pl.DataFrame(curves, schema=schema),
        "rejects": table.rejects,
    }
    tables |= {} if matrices is None else {"matrices": matrices}
    if reuse is not None:
        tables["reuse"] = pl.concat([reuse.features(prop.label) for prop in table.properties])
    return AdaptResult(to_jsonable(summary), {}, tables)


def verdict(rows: list[dict[str, Any]], method: str, label: str, metric: str) -> str:
    """The plain sentence, of the first property."""
    own = {row["method"]: row for row in rows if row["label"] == label}
    value = own[method]["metrics"][metric]
    said = f"{metric} {number(value['value'])} {interval(value['ci'])} on sequences of groups that were held out"
    better, worse, same = [], [], []
    for name, row in own.items():
        if name == method:
            continue
        low, high = row["better_by"]["ci"]
        (better if low > 0 else worse if high < 0 else same).append(SAID[name])
    parts = [f"{how} {', '.join(names)}" for how, names in
             (("better than", better), ("not told apart from", same), ("worse than", worse)) if names]  # fmt: skip
    return f"{label} by {method}: {said}" + (f"; {'; '.join(parts)}." if parts else ".")


def warnings(found: Compared) -> list[str]:
    said, table = [], found.part.table
    n = len(table.members("test"))
    if n < 100:
        said.append(f"only {n} sequences are held out: intervals are wide, and may be too narrow still")
    for prop in table.properties:
        main = metrics_of(prop)[0]
        own = found.draws[found.method][prop.label][main]
        for name, what in (("forest", "a forest on fingerprints"), ("scratch", "training from random weights")):
            other = found.draws.get(name)
            if name != found.method and other and gain(own, other[prop.label][main], main)["ci"][1] < 0:
                said.append(f"{what} predicts {prop.label} better")
    return said


def predictions(found: Compared, outputs: np.ndarray) -> pl.DataFrame:
    """A row per sequence and its part; of residues the lists of their values."""
    table, rows = found.part.table, []
    for i, example in enumerate(table.examples):
        at = np.flatnonzero(table.places == i)
        row: dict[str, Any] = {"index": example.index, "sequence": example.text, "group": example.group}
        row["part"] = ("train", "valid", "test")[int(table.parts[i])]
        for t, prop in enumerate(table.properties):
            y, own = table.y[at, t], outputs[at, prop.columns]
            if prop.kind == "residue":
                row |= {f"{prop.label}: measured": y.tolist(), f"{prop.label}: p": probabilities(own)[:, 1].tolist()}
                continue
            known = bool(np.isfinite(y[0]))
            if prop.kind == "regression":
                row |= {f"{prop.label}: measured": float(y[0]) if known else None}
                row |= {f"{prop.label}: predicted": float(own[0, 0])}
                continue
            shares = probabilities(own)[0]
            row |= {f"{prop.label}: measured": prop.classes[int(y[0])] if known else None}
            row |= {f"{prop.label}: p {name}": float(p) for name, p in zip(prop.classes, shares, strict=True)}
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)
