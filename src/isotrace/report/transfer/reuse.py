"""What the page of `isotrace adapt` says of reuse: what of the pretrained subject is used, where the weights went."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from isotrace.dictionaries.shelf import FeatureTables
from isotrace.report.figures import COLOURS, GREY, GRID, dot, path, picture, reach, scale, text, ticks
from isotrace.report.page import interval, number
from isotrace.stats.bootstrap import valued
from isotrace.transfer.adapting.comparison import Compared
from isotrace.transfer.adapting.scoring import gain, metrics_of
from isotrace.transfer.judging.abstention import CONSTANT
from isotrace.transfer.reuse.reuse import DICTIONARY, Reuse

SAID = {DICTIONARY: "the dictionary", "random": "random features", "neurons": "neurons", "untrained": "untrained copy"}
TIMES = ("before", "after")
SHOWN = 12
"""Features and matrices on the page, those that contribute, or have changed, most."""


def reuse_summary(found: Reuse, compared: Compared, name: str, names: FeatureTables) -> dict[str, Any]:
    """`name`: of the dictionary; `names`: of its features. `compared` holds the probe among its entries."""
    fve = {t: found.reads[t].explained[DICTIONARY].fve(found.weights) for t in TIMES}
    layers: list[dict[str, Any]] = [
        {"layer": "all" if i == 0 else found.dictionary.config.layers[i - 1]}
        | {t: valued(fve[t][:, i]) for t in TIMES}
        | {"lost": valued(fve["before"][:, i] - fve["after"][:, i])}
        for i in range(1 + found.dictionary.config.n_layers)
    ]
    active = found.reads["before"].fired.reshape(found.correlation.shape)
    common = found.correlation[(active >= 10) & np.isfinite(found.correlation)]
    labels = {}
    for prop in compared.part.table.properties:
        main, table = metrics_of(prop)[0], _shares(found, prop.label)
        draws = {who: compared.draws[who][prop.label][main] for who in ("probe", "untrained", compared.method)}
        row: dict[str, Any] = {"metric": main, "chance": CONSTANT[main], "shares": table}
        row |= {"probe": valued(draws["probe"]), "untrained": valued(draws["untrained"])}
        row |= {"adapted": valued(draws[compared.method]), "gain": gain(draws["probe"], draws["untrained"], main)}
        row["overlaps"] = found.overlaps[prop.label]
        row["features"] = _features(found, prop.label, names)
        labels[prop.label] = row | {"verdict": verdict(prop.label, row, layers[0]["after"])}
    return {
        "dictionary": name, "n": found.weights.shape[1], "l0": found.l0, "layers": layers, "labels": labels,
        "correlation": {
            "n": len(common),
            "quantiles": [float(v) for v in np.quantile(common, (0.1, 0.5, 0.9))] if len(common) else None,
        },
    }  # fmt: skip


def _features(found: Reuse, label: str, names: FeatureTables) -> list[dict[str, Any]]:
    """Those that contribute most after, with their names where the dictionary's shelf has any."""
    rows = found.features(label).sort("attribution_after", descending=True).head(SHOWN).to_dicts()
    known = names.of([(row["layer"], row["feature"]) for row in rows])
    return [row | {"name": names.label(known.get((row["layer"], row["feature"]), {}))} for row in rows]


def _shares(found: Reuse, label: str) -> list[dict[str, Any]]:
    """A row of the dictionary and of each that stands beside it: the shares of features before and after, and by how
    much the dictionary's share after is larger, with draws of the same sequences."""
    own = found.reads["after"].made[DICTIONARY, label]
    rows: list[dict[str, Any]] = []
    for name in found.names:
        made = {t: found.reads[t].made[name, label] for t in TIMES}
        row: dict[str, Any] = {"name": name}
        for kind in ("reuse", "net"):
            draws = {t: getattr(one, kind)(found.weights) for t, one in made.items()}
            row |= {f"{kind}_{t}": valued(one) for t, one in draws.items()}
            beyond = getattr(own, kind)(found.weights) - draws["after"]
            row[f"{kind}_beyond"] = None if name == DICTIONARY else valued(beyond)
        rows.append(row)
    made, row = found.reads["untrained"].made[DICTIONARY, label], {"name": "untrained"}
    for kind in ("reuse", "net"):
        own_draws, draws = (getattr(one, kind)(found.weights) for one in (own, made))
        row |= {f"{kind}_before": None, f"{kind}_after": valued(draws), f"{kind}_beyond": valued(own_draws - draws)}
    return [*rows, row]


def verdict(label: str, row: Mapping[str, Any], explained: Mapping[str, Any]) -> str:
    """In words: new, reused, or not shown to be. `explained`: what the dictionary explains of all layers after; where
    that is nothing, its features and its errors cancel, and their shares say nothing."""
    metric, chance = row["metric"], row["chance"]
    said = {
        who: f"{metric} {number(row[who]['value'])} {interval(row[who]['ci'])}"
        for who in ("probe", "adapted", "untrained")
    }  # fmt: skip
    if not row["probe"]["ci"][0] > chance:
        learned = "it was learned in training" if row["adapted"]["ci"][0] > chance else "nor was it learned"
        return (
            f"{label} is new: a probe of the pretrained subject is not clearly better than chance ({said['probe']}), "
            f"{learned} ({said['adapted']})."
        )
    own, *others = row["shares"]
    share = f"{_percent(own['reuse_after'])} of the attribution goes through features that the pretrained subject had"
    share += f" (before: {_percent(own['reuse_before'])})"
    beside = ", ".join(f"{SAID[one['name']]} {_percent(one['reuse_after'])}" for one in others)
    above = [one["reuse_beyond"]["ci"][0] > 0 for one in others]
    if not explained["ci"][0] > 0:
        fve = f"{number(explained['value'])} {interval(explained['ci'])}"
        return (
            f"{label}: nothing is shown to be reused. The pretrained subject's dictionary explains nothing of what the "
            f"adapted one writes (fraction of variance {fve}), so that the share of its features means nothing."
        )
    if all(above):
        found = f"{label} reuses what was there: {share}, more than through what stands beside it ({beside})."
    else:
        found = f"{label}: {share}, which is not shown to be more than what carries nothing learned has ({beside})."
    if row["gain"]["ci"][0] > 0:
        return found
    return (
        f"{found} That pretraining put it there is not shown: a probe of an untrained copy ({said['untrained']}) is "
        f"not clearly worse than one of the pretrained subject ({said['probe']})."
    )


def _percent(one: Mapping[str, Any]) -> str:
    low, high = (number(100 * v) for v in one["ci"])
    return f"{number(100 * one['value'])} % [{low}, {high}]"


def matrices_summary(rows: pl.DataFrame) -> dict[str, Any] | None:
    """Medians over the matrices that changed; None where none has."""
    changed = rows.filter(pl.col("change") > 0)
    if not changed.height:
        return None
    written = changed.filter(pl.col("layer").is_not_null())
    middle = lambda frame, name: None if not frame.height else frame[name].median()  # noqa: E731
    return {
        "n": rows.height, "changed": changed.height, "change": middle(changed, "change"),
        "stable_rank": middle(changed, "stable_rank"),
        "share": middle(written, "share"), "share_random": middle(written, "share_random"),
        "circuit_share": middle(written, "circuit_share"),
        "circuit_share_random": middle(written, "circuit_share_random"),
        "rows": changed.sort("change", descending=True).head(SHOWN).to_dicts(),
    }  # fmt: skip


def pictures(reuse: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(SVG, words) of the shares of each label, and of what the dictionary explains in each layer."""
    found = []
    for label, row in reuse["labels"].items():
        rows = [(SAID[one["name"]], one["reuse_before"], one["reuse_after"]) for one in row["shares"]]
        words = f"{label}: share of the attribution through features; blue: after, grey: before."
        found.append((pairs(rows, "Σ|features| / (Σ|features| + Σ|errors|)"), words))
    rows = [
        (one["layer"] if one["layer"] == "all" else f"layer {one['layer']}", one["before"], one["after"])
        for one in reuse["layers"]
    ]
    words = "What the dictionary explains of the MLPs' outputs; blue: after, grey: before."
    return [*found, (pairs(rows, "fraction of variance explained"), words)]


def pairs(rows: list[tuple[str, Mapping[str, Any] | None, Mapping[str, Any]]], words: str) -> str:
    """SVG: a row of two values with their intervals, the first in grey."""
    left, right, row, width = 150, 540, 40, 560
    values = [v for _, *both in rows for one in both if one is not None for v in (one["value"], *one["ci"])]
    low, high = reach([v for v in values if v is not None and np.isfinite(v)] or [0.0, 1.0])
    across, bottom = scale(low, high, left, right), row * len(rows) + 12
    parts = [path([(across(x), 8), (across(x), bottom)], GRID) for x in ticks(low, high, 6)]
    parts += [text(across(x), bottom + 18, number(x), "middle", size=12) for x in ticks(low, high, 6)]
    for place, (name, *both) in enumerate(rows):
        parts.append(text(left - 10, row * place + 33, name, "end", size=13))
        for one, colour, up in zip(both, (GREY, COLOURS[0]), (-6, 6), strict=True):
            if one is None or one["value"] is None or not np.isfinite(one["value"]):
                continue
            y = row * place + 28 + up
            ends = [v for v in one["ci"] if v is not None and np.isfinite(v)]
            parts.append(path([(across(v), y) for v in ends], colour, 'stroke-width="3"'))
            parts.append(dot(across(one["value"]), y, colour, f"{number(one['value'])} {interval(one['ci'])}", 5))
    parts.append(text((left + right) / 2, bottom + 38, words, "middle", size=13))
    return picture(width, bottom + 46, words, parts, "curve")
