"""What one feature is connected to: the sequences it is weighed on, and the result."""

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl

from isotrace.attribution.weights.feature import connections
from isotrace.attribution.weights.record import Recordings
from isotrace.attribution.weights.segments import Segments
from isotrace.base.errors import InputError
from isotrace.base.progress import Progress
from isotrace.datasets.inputs import rejects_frame
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import batches_of
from isotrace.dictionaries.shelf import FeatureTables, shelf_of
from isotrace.report.connections import ConnectionsResult
from isotrace.subjects.subject import Subject
from isotrace.verbs.corpus import usable
from isotrace.verbs.loading import label, opened

if TYPE_CHECKING:
    from isotrace.verbs.features import FeaturesRequest

SEQUENCES = 256
"""Drawn from those on the dictionary's shelf, where no others are given."""
SCHEMA = {"relation": pl.String, "layer": pl.Int64, "feature": pl.Int64, "label": pl.String,
          "token": pl.String, "route": pl.String,
          "gives": pl.Float64, "se": pl.Float64,
          "ci_low": pl.Float64, "ci_high": pl.Float64,
          "threshold": pl.Float64, "above_null": pl.Boolean, "p": pl.Float64,
          "offset": pl.Int64, "offset_share": pl.Float64}  # fmt: skip


def connected(
    request: "FeaturesRequest", subject: Subject, dictionary: Dictionary, progress: Progress
) -> ConnectionsResult:
    """Raises InputError for a feature the dictionary does not have, one that never fires, and where no sequences are
    given and there are none on the dictionary's shelf."""
    layer, feature = map(int, cast(str, request.feature).split("."))
    config = dictionary.config
    if layer not in config.layers or feature >= config.n_features:
        places = ", ".join(map(str, config.layers))
        raise InputError(f"no feature {layer}.{feature}: layers are {places}, features 0 to {config.n_features - 1}.")
    tables = shelf_of(dictionary).tables
    if request.data is None:
        texts, rejects = on_shelf(tables, request.limit or SEQUENCES, request.seed), rejects_frame([])
    else:
        texts, rejects = usable(subject, request.data, request.column, request.limit)
    if not texts:
        raise InputError(f"no sequence can be used; first reason: {rejects['reason'][0]}.")
    segments = Segments(subject, dictionary)
    with opened(request, request.out, subject, dictionary) as run:
        recordings = Recordings(segments, [*progress(batches_of(subject, texts), "sequences")])
        slot = config.layers.index(layer)
        judged = {"shown": request.shown, "permutations": request.permutations, "seed": request.seed}
        found = connections(recordings, slot, feature, **judged)
        keys = [(layer, feature), *((r["layer"], r["feature"]) for r in found.rows if r.get("feature") is not None)]
        known = tables.of(dict.fromkeys(keys))
        named: dict[Any, str] = {key: FeatureTables.label(row) for key, row in known.items()}
        rows = [row | {"label": named.get((row.get("layer"), row.get("feature")))} for row in found.rows]
        own = known.get((layer, feature), {})
        summary = {
            "subject": subject.source,
            "dictionary": label(request.dictionary),
            "layer": layer,
            "feature": feature,
            "label": named.get((layer, feature)),
            "n_sequences": recordings.n_sequences,
            "n_tokens": recordings.n_tokens,
            "density": float(recordings.density[slot, feature]),
            "mean": float(recordings.mean[slot, feature]),
            "deviation": float(recordings.deviation[slot, feature]),
            "shares": found.shares,
            "kinds_of_token": found.classes,
            "ablated": {name: own.get(name) for name in ("promoted", "promoted_by", "suppressed", "suppressed_by")},
            "permutations": request.permutations,
            "connections": rows,
            "warnings": found.warnings,
            "rejects": rejects.to_dicts(),
        }
        tables_of = {"connections": pl.DataFrame(rows, schema=SCHEMA), "rejects": rejects}
        result = ConnectionsResult(summary, tables=tables_of)
        if run is not None:
            result.write(run)
    return result


def on_shelf(tables: FeatureTables, n: int, seed: int) -> list[str]:
    """`n` of the sequences on which the dictionary's features were shown, drawn evenly. Raises InputError where there
    are none."""
    if tables.examples.is_empty():
        raise InputError(
            "this dictionary has no sequences on its shelf: give some with --data, or run annotate --attach."
        )
    every = sorted(tables.examples["sequence"].drop_nulls().unique().to_list())
    drawn = np.random.default_rng(seed).permutation(len(every))[:n]
    return [every[i] for i in np.sort(drawn)]
