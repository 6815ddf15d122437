"""Sites of a source put together: p and q over all its layers, the best pairs, and how many concepts it knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isotrace.annotation.scores.token_scores import F1S
from isotrace.annotation.site import SiteResult
from isotrace.domains.domain import Concept
from isotrace.stats.bootstrap import interval, intervals
from isotrace.stats.permutation import p_values, q_values

LEVELS = {"f1_50": 0.5, "f1_80": 0.8}
ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class SourceResult:
    """`frame`: one row per pair, columns as associations.parquet has them for token concepts. `counts[name]` =
    (number of concepts, low, high) with a feature at that held-out F1 and q < 0.05, by name of LEVELS."""

    frame: pl.DataFrame
    counts: dict[str, tuple[int, int, int]]
    per_layer: pl.DataFrame


def combine(source: str, results: Mapping[int, SiteResult], concepts: tuple[Concept, ...]) -> SourceResult:
    """`results` by layer, of pairs with `concepts`, each of which counts for q.

    The interval of a count is the 95 % percentile interval over bootstrap draws of sequences: in each draw the
    concepts whose best pair then reaches the F1, q as measured once.
    """
    layers = list(results)
    parts = list(results.values())
    join = lambda pick: np.concatenate([pick(r) for r in parts])  # noqa: E731
    layer = np.repeat(layers, [len(r.pairs) for r in parts])
    concept, feature = join(lambda r: r.pairs.concept), join(lambda r: r.pairs.feature)
    f1_selection, draws = join(lambda r: r.f1_selection), join(lambda r: r.scores.draws)
    null_max = np.max([r.null_max for r in parts], axis=0)
    f1_test = join(lambda r: r.f1_test)
    p_selection = np.ones(len(concept))
    for c in np.unique(concept):
        at = concept == c
        p_selection[at] = p_values(f1_test[at], null_max[:, [c]])
    p_heldout = join(lambda r: r.p_heldout)
    p = np.maximum(p_selection, p_heldout)
    concept_rank = rank(concept, f1_selection)
    feature_rank = rank(layer * (int(feature.max(initial=0)) + 1) + feature, f1_selection)
    best = concept_rank == 1
    q = q_values(p, best, len(concepts))
    low, high = intervals(draws.T, defined=0)
    values = {name: join(lambda r, name=name: r.scores.values[name]) for name in (*F1S, "precision", "recall")}
    columns = {
        "source": [source] * len(concept),
        "layer": layer.astype(np.int32),
        "feature": feature,
        "concept": [concepts[c].name for c in concept],
        "group": [concepts[c].group for c in concept],
        "kind": ["token"] * len(concept),
        "threshold": join(lambda r: r.pairs.threshold),
        "n_fired": join(lambda r: r.scores.n_fired),
        "n_positive": join(lambda r: r.scores.n_positive),
        "n_instances": join(lambda r: r.scores.n_instances),
        **values,
        "f1_selection": f1_selection,
        "f1_ci_low": low,
        "f1_ci_high": high,
        "null_f1": join(lambda r: r.null95),
        "p_selection": p_selection,
        "p_heldout": p_heldout,
        "p": p,
        "q": q,
        "feature_rank": feature_rank.astype(np.int32),
        "concept_rank": concept_rank.astype(np.int32),
    }
    text: dict[str, Any] = dict.fromkeys(("source", "concept", "group", "kind"), pl.String)
    frame = pl.DataFrame(columns, schema_overrides=text, nan_to_null=True)
    passing = best & (q < ALPHA)
    counts = {}
    for name, least in LEVELS.items():
        drawn = (draws[passing] >= least).sum(0) if passing.any() else np.zeros(1)
        found = int((values["f1"][passing] >= least).sum())
        counts[name] = (found, *(round(v) for v in interval(drawn)))
    return SourceResult(frame, counts, _per_layer(frame, results))


def rank(key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """1 for the largest value of each key, 2 for the next …"""
    order = np.lexsort((-value, key))
    starts = np.flatnonzero(np.diff(key[order], prepend=key.min(initial=0) - 1))
    rank = np.empty(len(key), dtype=np.int64)
    rank[order] = np.arange(len(key)) - np.repeat(starts, np.diff(np.append(starts, len(key)))) + 1
    return rank


def _per_layer(frame: pl.DataFrame, results: Mapping[int, SiteResult]) -> pl.DataFrame:
    """Coverage of each layer by itself: concepts whose best feature of that layer reaches the F1 at q < 0.05."""
    rows = []
    for layer, result in results.items():
        own = frame.filter((pl.col("layer") == layer) & (pl.col("q") < ALPHA))
        best = own.sort("f1_selection", descending=True).group_by("concept", maintain_order=True).first()
        rows.append(
            {"layer": layer, "n_features": result.n_features, "n_alive": result.n_alive}
            | {f"concepts_{name}": int((best["f1"] >= least).sum()) for name, least in LEVELS.items()}
        )
    schema = {"layer": pl.Int32, "n_features": pl.Int64, "n_alive": pl.Int64} | {
        f"concepts_{name}": pl.Int64 for name in LEVELS
    }
    return pl.DataFrame(rows, schema=schema)
