"""What a scan says of features that change between wild type and mutant, as data."""

from typing import Any

import polars as pl

from isotrace.dictionaries.shelf import FeatureTables
from isotrace.probing.changes import AROUND, TOP, Changes, Judged
from isotrace.report.page import interval, number
from isotrace.stats.bootstrap import interval as interval_of

BESIDE = {
    "dictionary": "features of the dictionary",
    "neurons": "neurons of the subject",
    "random": "random directions, as sparse",
    "untrained": "neurons of an untrained copy",
}


def changes_summary(found: Changes, names: FeatureTables, dictionary: str) -> dict[str, Any]:
    """`sources`: Spearman of the TOP together with the effects of the half that did not choose them, `distance` 1 less
    it, `p`; `nearer_by`: by how much the dictionary's are nearer, paired on the same draws of sites; `rows`: each of
    the dictionary's, labelled."""
    sources = {name: _together(one) for name, one in found.sources.items()}
    summary: dict[str, Any] = {
        "dictionary": dictionary, "around": AROUND, "top": TOP, "reason": found.reason,
        "n": {"variants": found.n_held[0], "sites": found.n_held[1]}, "sources": sources, "nearer_by": {}, "rows": [],
    }  # fmt: skip
    if (own := found.sources.get("dictionary")) is None:
        return summary | {"verdict": f"No features are set beside the measured effects: {found.reason}."}
    parts = []
    for name, other in found.sources.items():
        if name != "dictionary":
            apart = own.together - other.together
            low, high = interval_of(apart[1:])
            summary["nearer_by"][name] = {"by": float(apart[0]), "ci": [low, high]}
            how = "nearer than" if low > 0 else "farther than" if high < 0 else "no nearer than"
            parts.append(f"{how} {BESIDE[name]} ({number(sources[name]['value'])})")
    labels = names.of(own.keys)
    for i, key in enumerate(own.keys):
        summary["rows"].append(
            {"layer": key[0], "feature": key[1], "label": names.label(labels.get(key, {})),
             "chosen": float(own.chosen[i]), "held": float(own.held[i, 0]), "ci": list(interval_of(own.held[i, 1:])),
             "p": float(own.p[i]), "q": float(own.q[i])}
        )  # fmt: skip
    said = f"Spearman {number(sources['dictionary']['value'])} {interval(sources['dictionary']['ci'])}"
    return summary | {
        "verdict": f"Changes of the {len(own.keys)} features chosen on one half of the sites rank the other half with "
        f"{said}: {', '.join(parts)}."
    }


def _together(one: Judged) -> dict[str, Any]:
    value = float(one.together[0])
    ci = list(interval_of(one.together[1:]))
    return {"n": len(one.keys), "value": value, "ci": ci, "distance": 1 - value, "p": one.p_together}


def changes_frame(found: Changes, names: FeatureTables) -> pl.DataFrame:
    """A row per variant and feature that changes most there, `before` in the wild type and `after` in the variant."""
    labels = names.of({(layer, feature) for _, layer, feature, *_ in found.most})
    rows = [
        (mutation, layer, feature, names.label(labels.get((layer, feature), {})), before, after, after - before)
        for mutation, layer, feature, before, after in found.most
    ]
    kinds = (pl.String, pl.Int64, pl.Int64, pl.String, pl.Float64, pl.Float64, pl.Float64)
    columns = ("mutation", "layer", "feature", "label", "before", "after", "change")
    return pl.DataFrame(rows, schema=dict(zip(columns, kinds, strict=True)), orient="row")
