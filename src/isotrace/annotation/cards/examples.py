"""What a feature looks like: sequences on which it fires most, middling, and those where it should and does not."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from scipy import sparse

from isotrace.datasets.annotated import Data

SIZES = {"top": 4, "middle": 2, "near-miss": 2}
BINS = 20
SCHEMA = {"feature": pl.Int64, "group": pl.String, "index": pl.Int64, "activation": pl.Float32,
          "positions": pl.List(pl.Int16), "values": pl.List(pl.Float32)}  # fmt: skip


def collect(activations: sparse.csc_matrix, data: Data, best: Mapping[int, int], seed: int) -> pl.DataFrame:
    """Examples of every feature that fires, see schema in docs/annotate.md; `index` is the row of the input.

    `best` maps a feature to the number of its token concept. Near misses carry that concept where the feature stays
    below a tenth of its maximum; of a feature without a concept, the sequences on which it fires most weakly.
    """
    rng, starts, owner = np.random.default_rng((seed, 3)), data.table.sequence_ptr, data.table.sequence_of
    carriers = _carriers(data, set(best.values()), owner)
    records: list[dict[str, Any]] = []
    for feature in np.flatnonzero(np.diff(activations.indptr)).tolist():
        part = slice(*activations.indptr[feature : feature + 2])
        rows, values = activations.indices[part], activations.data[part]
        peak = np.zeros(len(data.ids), dtype=np.float32)
        np.maximum.at(peak, owner[rows], values)
        active = np.flatnonzero(peak)
        ranked = active[np.argsort(-peak[active], kind="stable")]
        third = max(1, len(ranked) // 3)
        quiet = carriers.get(best.get(feature, -1), ranked[2 * third :])
        if feature in best:
            quiet = quiet[peak[quiet] < 0.1 * peak.max()]
        pools = {"top": ranked[: SIZES["top"]], "middle": ranked[third : 2 * third], "near-miss": quiet}
        seen: set[int] = set()
        for group, pool in pools.items():
            pool = np.asarray([i for i in pool[:200] if i not in seen], dtype=np.int64)
            chosen = pool if group == "top" else rng.choice(pool, min(SIZES[group], len(pool)), replace=False)
            for place in chosen.tolist():
                seen.add(place)
                at = (rows >= starts[place]) & (rows < starts[place + 1])
                at = at & (not data.whole)  # what stands for the whole sequence stands at no token
                order = np.argsort(rows[at])
                records.append(
                    {
                        "feature": feature,
                        "group": group,
                        "index": data.index[place],
                        "activation": float(peak[place]),
                        "positions": (rows[at][order] - starts[place]).tolist(),
                        "values": values[at][order].tolist(),
                    }
                )
    return pl.DataFrame(records, schema=SCHEMA)


def _carriers(data: Data, concepts: set[int], owner: np.ndarray) -> dict[int, np.ndarray]:
    """Sequences with each concept, longest last, as numbers."""
    table, found = data.table, {}
    for concept in concepts:
        first, last = table.instance_ptr[[table.concept_ptr[concept], table.concept_ptr[concept + 1]]]
        found[concept] = np.unique(owner[table.tokens[first:last]])
    return found


def summaries(activations: sparse.csc_matrix) -> pl.DataFrame:
    """Per feature: `density` (share of tokens), `max_activation`, `mean_activation` (where positive), `histogram`."""
    n_tokens, n_features = activations.get_shape()
    counts = np.diff(activations.indptr)
    top, mean, histograms = np.full(n_features, np.nan), np.full(n_features, np.nan), []
    for feature in range(n_features):
        values = activations.data[activations.indptr[feature] : activations.indptr[feature + 1]]
        if len(values):
            top[feature], mean[feature] = values.max(), values.mean()
            histograms.append(np.histogram(values, bins=BINS, range=(0, top[feature]))[0].tolist())
        else:
            histograms.append([])
    columns = {"feature": np.arange(n_features), "density": counts / n_tokens, "max_activation": top,
               "mean_activation": mean}  # fmt: skip
    frame = pl.DataFrame(columns, nan_to_null=True)
    return frame.with_columns(pl.Series("histogram", histograms, dtype=pl.List(pl.Int64)))
