"""What `isotrace recommend` found: the checkpoints beside the forest on fingerprints, and the choice."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import numpy as np
import polars as pl

from isotrace.base.result import Result
from isotrace.base.runs import to_jsonable
from isotrace.datasets.inputs import rejects_frame
from isotrace.datasets.replicates import Cleaned
from isotrace.domains.domain import Domain
from isotrace.probing.crossed import probabilities
from isotrace.report.card.carded import shared
from isotrace.report.figures import COLOURS, GREY, GRID, dot, path, picture, reach, scale, text, ticks
from isotrace.report.page import interval, number, render_page, template_text
from isotrace.stats.bootstrap import valued
from isotrace.transfer.judging.abstention import CONSTANT, FOREST
from isotrace.transfer.recommending.recommend import Recommendation

WIDTH, LEFT, RIGHT, ROW = 560, 190, 540, 44
SAID = {"r2": "R²", "auroc": "AUROC", "macro_auroc": "mean AUROC of the classes"}


class RecommendResult(Result):
    """`summary` as docs/transfer.md lists it; tables `predictions` and `rejects`."""

    kind = "recommendation"

    def to_frame(self) -> pl.DataFrame:
        """A row per checkpoint, the best first, and one of the forest: scores with intervals as text."""
        return pl.DataFrame(
            [
                {"name": row["name"]}
                | {key: "" if row[key] is None else f"{number(row[key]['value'])} {interval(row[key]['ci'])}"
                   for key in ("score", "lead", "untrained")}
                | {"seconds": row["seconds"]}
                for row in self.summary["table"]
            ]
        )  # fmt: skip

    def told(self) -> Iterable[str]:
        yield self.summary["verdict"]
        for row in self.summary["table"]:
            score = row["score"]
            yield f"{row['name']}: {self.summary['metric']} {number(score['value'])} {interval(score['ci'])}"

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        run, verdict = dict(manifest or {}), self.summary["verdict"]
        title = f"Which checkpoint for {self.summary['label']}"
        page = self.summary | {
            "title": title,
            **shared(run, title, verdict, {"verdict": verdict, "command": run.get("command", "")}),
            "said": SAID[self.summary["metric"]],
            "figure": ladder(self.summary["table"], SAID[self.summary["metric"]]),
            "created": run.get("started", ""),
            "command": run.get("command", ""),
        }
        return render_page("recommend.html.j2", to_jsonable(page), script=template_text("copy.js"), data=None)

    def _repr_html_(self) -> str:
        figure = ladder(self.summary["table"], SAID[self.summary["metric"]])
        return f"<div>{figure}<p>{escape(self.summary['verdict'])}</p></div>"


def recommend_result(
    found: Recommendation, domain: Domain, clean: Cleaned, n_corpus: int, n_unread: int
) -> RecommendResult:
    """`n_corpus`, `n_unread`: sequences of the corpus that were, and could not be, read."""
    decision, names = found.decision, [name for name in found.outputs if name != FOREST]
    draws = {name: found.scores(x) for name, x in found.outputs.items()}
    rows = [
        {
            "name": name,
            "score": valued(draws[name]),
            "lead": None if name == FOREST else valued(draws[name] - draws[FOREST]),
            "untrained": None if name == FOREST else valued(found.scores(found.untrained[name])),
            "seconds": round(found.seconds[name], 1),
        }
        for name in sorted(found.outputs, key=lambda name: -decision.scores[name])
    ]
    rejects = rejects_frame(found.unread)
    ranked = [row["name"] for row in rows if row["name"] != FOREST]
    summary: dict[str, Any] = {
        "label": found.data.label,
        "kind": found.data.kind,
        "classes": list(found.data.classes),
        "metric": found.metric,
        "domain": domain.name,
        "subjects": names,
        "choice": decision.choice,
        "reason": decision.reason,
        "best": decision.best,
        "lead": {"value": decision.lead, "ci": [decision.low, decision.high]},
        "next": None if len(ranked) == 1 else {"name": ranked[1], **valued(draws[ranked[0]] - draws[ranked[1]])},
        "corpus": {"n": n_corpus, "unread": n_unread, "median_similarity": decision.near},
        "n": {"rows": decision.n, "groups": len(np.unique(found.groups)), "folds": found.n_folds},
        "constant": CONSTANT[found.metric],
        "table": rows,
        "cleaned": {name: n for name, n in clean.counts.items() if n},
        "rejects": rejects.head(20).to_dicts(),
        "n_rejected": rejects.height,
    }
    summary["verdict"], summary["warnings"] = verdict(summary), warnings(summary)
    return RecommendResult(summary, {}, {"predictions": predictions(found), "rejects": rejects})


def verdict(summary: Mapping[str, Any]) -> str:
    """The plain sentence."""
    scores = {row["name"]: row for row in summary["table"]}
    metric, forest = SAID[summary["metric"]], scores[FOREST]["score"]["value"]
    best, lead = summary["best"], summary["lead"]
    beside = f"{metric} {number(scores[best]['score']['value'])} against the forest's {number(forest)}"
    by = f"lead {number(lead['value'])} {interval(lead['ci'])}"
    if summary["choice"] is None:
        return (
            f"{summary['reason'][0].upper()}{summary['reason'][1:]}. Best of the checkpoints: {best}, {beside}, {by}."
        )
    if summary["choice"] == FOREST:
        return f"Take the forest on fingerprints: no checkpoint comes up to it. Best of them: {best}, {beside}, {by}."
    other = summary["next"]
    if other is None:
        return f"Take {best}: {beside}, {by}."
    apart = "" if other["ci"][0] > 0 else ", and the two cannot be told apart"
    ahead = f"{number(other['value'])} {interval(other['ci'])}"
    return f"Take {best}: {beside}, {by}. It is ahead of {other['name']} by {ahead}{apart}."


def warnings(summary: Mapping[str, Any]) -> list[str]:
    said, corpus = [], summary["corpus"]
    if not corpus["n"]:
        said.append(
            "whether these sequences are like those that the checkpoints were trained on is not checked: --corpus."
        )
    if corpus["unread"]:
        said.append(f"{corpus['unread']} sequences of the corpus cannot be read, and are left out.")
    for row in summary["table"]:
        blank = row["untrained"]
        if blank is not None and row["name"] == summary["best"] and blank["value"] >= row["score"]["ci"][0]:
            value = number(blank["value"])
            said.append(f"an untrained copy of {row['name']} reaches {value}: what is read need not have been learned.")
    return said


def predictions(found: Recommendation) -> pl.DataFrame:
    """A row per sequence: the label and what each source says of it while it is held out, numbers, or the share of the
    second class, of more classes the likeliest."""
    classes = found.data.classes
    columns: dict[str, Any] = {
        "index": [e.index for e in found.data.examples], "sequence": [e.text for e in found.data.examples],
        "group": found.groups.tolist(),
        "label": [classes[int(v)] for v in found.y] if classes else found.y.tolist(),
    }  # fmt: skip
    for name, outputs in found.outputs.items():
        if not classes:
            columns[name] = outputs[:, 0].tolist()
        else:
            shares = probabilities(outputs)
            columns[name] = shares[:, 1].tolist() if len(classes) == 2 else [classes[i] for i in shares.argmax(1)]
    return pl.DataFrame(columns)


def ladder(rows: list[dict[str, Any]], metric: str) -> str:
    """SVG: a row per source, its score with the interval; in grey that of the untrained copy."""
    values = [v for row in rows for v in (*row["score"]["ci"], row["score"]["value"])]
    values += [row["untrained"]["value"] for row in rows if row["untrained"] is not None]
    low, high = reach(values)
    across, bottom = scale(low, high, LEFT, RIGHT), ROW * len(rows) + 14
    parts = [path([(across(x), 8), (across(x), bottom)], GRID) for x in ticks(low, high, 6)]
    parts += [text(across(x), bottom + 18, number(x), "middle", size=12) for x in ticks(low, high, 6)]
    for place, row in enumerate(rows):
        y, score = ROW * place + 30, row["score"]
        colour = COLOURS[1] if row["name"] == FOREST else COLOURS[0]
        said = f"{row['name']}: {number(score['value'])} {interval(score['ci'])}"
        name = row["name"] if len(row["name"]) < 25 else f"…{row['name'][-23:]}"
        parts.append(text(LEFT - 10, y + 5, name, "end", size=13))
        parts.append(path([(across(v), y) for v in score["ci"]], colour, 'stroke-width="3"'))
        parts.append(dot(across(score["value"]), y, colour, said, 6))
        if row["untrained"] is not None:
            value = row["untrained"]["value"]
            parts.append(dot(across(value), y, GREY, f"untrained copy: {number(value)}", 4))
    parts.append(text((LEFT + RIGHT) / 2, bottom + 38, metric, "middle", size=13))
    return picture(WIDTH, bottom + 46, "scores of rows held out", parts, "curve")
