"""What an annotation says in a few numbers: coverage of layers, sources beside each other, concepts, warnings."""

import math
from typing import Any

import numpy as np
import polars as pl

from isotrace.annotation.combine import ALPHA, SourceResult
from isotrace.datasets.annotated import Data

COLUMNS = {
    "source": pl.String, "layer": pl.Int32, "feature": pl.Int64, "concept": pl.String, "group": pl.String,
    "kind": pl.String, "threshold": pl.Float32, "n_fired": pl.Int64, "n_positive": pl.Int64, "n_instances": pl.Int64,
    **dict.fromkeys(("f1", "f1_any", "f1_full", "f1_interplm", "f1_intermol", "precision", "recall", "f1_selection",
                     "f1_ci_low", "f1_ci_high", "null_f1", "auroc", "auroc_ci_low", "auroc_ci_high", "odds_ratio",
                     "odds_ci_low", "odds_ci_high", "spearman", "spearman_ci_low", "spearman_ci_high"), pl.Float64),
    "pooling": pl.String, "p_selection": pl.Float64, "p_heldout": pl.Float64, "p": pl.Float64, "q": pl.Float64,
    "feature_rank": pl.Int32, "concept_rank": pl.Int32, "n_sequences": pl.Int64,
    **dict.fromkeys(("effect_selection", "ci_low", "ci_high"), pl.Float64),
}  # fmt: skip


def coverage_of(results: dict[str, SourceResult], features: pl.DataFrame) -> pl.DataFrame:
    labelled = features.filter(pl.col("label") != "unexplained").group_by("layer").agg(n_labelled=pl.len())
    parts = []
    for name, result in results.items():
        frame = result.per_layer.with_columns(pl.lit(name).alias("source"))
        if name == "dictionary":
            frame = frame.join(labelled, on="layer", how="left").with_columns(
                pl.col("n_labelled").fill_null(0).cast(pl.Int64)
            )
        parts.append(frame)
    return pl.concat(parts, how="diagonal")


def source_summary(name: str, results, notes, coverage: pl.DataFrame) -> dict[str, Any]:
    if name not in results:
        return {"reason": notes[name]}
    own = coverage.filter(pl.col("source") == name)
    found: dict[str, Any] = {"n_features": int(own["n_features"].sum()), "n_alive": int(own["n_alive"].sum())}
    if name == "dictionary":
        found["n_labelled"] = int(own["n_labelled"].sum())
    for level, (n, low, high) in results[name].counts.items():
        found |= {f"concepts_{level}": n, f"concepts_{level}_ci": [low, high]}
    return found


def concepts_of(data: Data, reasons: list[str | None]) -> pl.DataFrame:
    table = data.table
    positive = [*table.positive(), *(int(np.nansum(c == 1)) if k.kind == "class" else int((~np.isnan(c)).sum())
                for k, c in zip(table.sequence_concepts, table.numbers.T, strict=True))]  # fmt: skip
    instances = [*np.diff(table.concept_ptr), *([None] * len(table.sequence_concepts))]
    every = (*table.token_concepts, *table.sequence_concepts)
    rows = [
        {"concept": c.name, "group": c.group, "kind": c.kind, "n_positive": int(n),
         "n_instances": None if i is None else int(i), "reason": reason}
        for c, n, i, reason in zip(every, positive, instances, reasons, strict=True)
    ]  # fmt: skip
    text, number = ("concept", "group", "kind", "reason"), ("n_positive", "n_instances")
    schema = dict.fromkeys(text, pl.String) | dict.fromkeys(number, pl.Int64)
    return pl.DataFrame(rows, schema=schema).select("concept", "group", "kind", *number, "reason")


def warnings_of(summary: dict[str, Any], associations: pl.DataFrame) -> list[str]:
    own, found = summary["sources"]["dictionary"], []
    for name, other in summary["sources"].items():
        if name == "dictionary" or "concepts_f1_50" not in other:
            continue
        ours, theirs = own["concepts_f1_50"], other["concepts_f1_50"]
        if ours <= other["concepts_f1_50_ci"][1]:
            how = "no more" if ours <= theirs else "more, but within the interval"
            found.append(
                f"{name} knows {theirs} concepts at F1 0.5, the dictionary {ours}: {how}, so these labels do not show "
                "that training or the dictionary adds anything."
            )
    return found + too_few_permutations(summary["n_permutations"], associations)


def too_few_permutations(n: int, associations: pl.DataFrame) -> list[str]:
    """A warning where no label is possible, since q is above ALPHA even where p is as small as `n` permutations can
    make it."""
    best = associations.filter(pl.col("source") == "dictionary", pl.col("q").is_not_null()).sort("q").head(1)
    if best.is_empty() or best["q"][0] < ALPHA or best["p"][0] > 1 / (n + 1) + 1e-12:
        return []
    enough = math.ceil(best["q"][0] * (n + 1) / ALPHA)
    return [
        f"nothing could be named: with {n} permutations q is {best['q'][0]:.2g} at best, also where p is as small as "
        f"they allow. Give --permutations {enough} or more."
    ]
