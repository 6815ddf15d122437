"""The dictionary's features described: label, examples, histogram, structure over the graph, effect on the output."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
from scipy import sparse

from isotrace.annotation.cards.effects import SCHEMA, logit_effects
from isotrace.annotation.cards.examples import collect, summaries
from isotrace.annotation.nulls.sources import dictionary_sites, encoded
from isotrace.annotation.scores.structure_stats import morans_i, stability
from isotrace.base.progress import Progress
from isotrace.datasets.annotated import Data, read
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.shelf import UNEXPLAINED
from isotrace.subjects.subject import Subject

if TYPE_CHECKING:
    from isotrace.annotation.annotate import AnnotationConfig

LABEL_F1, LABEL_AUROC, ALPHA = 0.5, 0.8, 0.05
Loader = Callable[[], sparse.csr_matrix]


def features(
    subject: Subject,
    dictionary: Dictionary,
    data: Data,
    loaders: Mapping[int, Loader],
    token: pl.DataFrame,
    sequence: pl.DataFrame,
    config: "AnnotationConfig",
    progress: Progress,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(features, examples) as docs/annotate.md lists them; `token` and `sequence` are the dictionary's pairs."""
    numbers = {concept.name: i for i, concept in enumerate(data.table.token_concepts)}
    frames, examples = [], []
    for layer, load in progress(list(loaders.items()), "features"):
        matrix = load()
        columns = sparse.csc_matrix(matrix)
        own = token.filter(pl.col("layer") == layer)
        labels = label(own, sequence.filter(pl.col("layer") == layer) if sequence.height else sequence)
        best = {row["feature"]: numbers[row["concept"]] for row in labels.to_dicts() if row["concept"] in numbers}
        frame = (
            summaries(columns)
            .join(labels, on="feature", how="left")
            .with_columns(
                pl.lit(layer, dtype=pl.Int32).alias("layer"),
                *_autocorrelation(matrix, data),
                label=pl.col("label").fill_null(UNEXPLAINED),
            )
        )
        frames.append(frame)
        found = collect(columns, data, best, config.seed)
        examples.append(found.with_columns(pl.lit(layer, dtype=pl.Int32).alias("layer")))
    table, shown = pl.concat(frames), pl.concat(examples)
    table = table.with_columns(reason=_reason()).join(
        _stability(subject, dictionary, data, config, progress), on=["layer", "feature"], how="left"
    )
    effect = pl.DataFrame(schema=SCHEMA)
    if config.effects and subject.has_head:
        effect = logit_effects(
            subject, dictionary, data, shown, progress=lambda i: progress(i, "effects on the output")
        )
    table = table.join(effect, on=["layer", "feature"], how="left")
    return table.with_columns(pl.lit(None, dtype=pl.String).alias("explanation")), shown


def _autocorrelation(matrix: sparse.csr_matrix, data: Data) -> list[pl.Series]:
    """Of activations over bonds; null for features that have one activation of a sequence."""
    if data.whole:
        return [pl.Series(name, [None] * matrix.get_shape()[1], dtype=pl.Float64) for name in ("moran_i", "moran_null")]
    bonds = [data.domain.bonds(r) for r in data.readings]
    found = morans_i(matrix, [r.elements for r in data.readings], bonds, data.table.sequence_ptr)
    return [pl.Series("moran_i", found.value).fill_nan(None), pl.Series("moran_null", found.null).fill_nan(None)]


def label(token: pl.DataFrame, sequence: pl.DataFrame) -> pl.DataFrame:
    """One row per feature that has a pair: its best significant concept, else its best one without a label.

    A token concept labels a feature if its held-out F1 is at least LABEL_F1 with q below ALPHA and the interval of F1
    stands above the pair's own shuffled F1; a class or value if the interval of its AUROC lies above LABEL_AUROC, of
    its Spearman correlation above half: `X` or `not X`, `high X` or `low X`. Among several the one best on the
    selection side.
    """
    holds = ((pl.col("f1") >= LABEL_F1) & (pl.col("q") < ALPHA) & (pl.col("f1_ci_low") > pl.col("null_f1"))).fill_null(
        False
    )
    kept = ["feature", "concept", "f1", "f1_ci_low", "f1_ci_high", "null_f1", "q", "holds"]
    ranked = token.with_columns(holds=holds).sort("holds", "f1_selection", descending=True, maintain_order=True)
    best = ranked.group_by("feature", maintain_order=True).first().select(kept)
    best = best.with_columns(label=pl.when("holds").then("concept"), auroc=pl.lit(None, dtype=pl.Float64))
    if sequence.height:
        strong = (pl.col("q") < ALPHA) & (pl.col("ci_low") > pl.col("bar"))
        whole = sequence.with_columns(bar=pl.when(pl.col("kind") == "class").then(LABEL_AUROC).otherwise(0.5)).filter(
            strong
        )
        against = pl.col("effect_selection") < 0
        word = pl.when(pl.col("kind") == "value").then(pl.when(against).then(pl.lit("low ")).otherwise(pl.lit("high ")))
        said = word.when(against).then(pl.lit("not ")).otherwise(pl.lit("")) + pl.col("concept")
        whole = whole.sort("q", "ci_low", descending=[False, True], maintain_order=True)
        whole = (
            whole.group_by("feature", maintain_order=True)
            .first()
            .select("feature", whole="concept", said=said, whole_q="q", whole_auroc="auroc")
        )
        best = best.join(whole, on="feature", how="full", coalesce=True)
        free = pl.col("label").is_null() & pl.col("whole").is_not_null()
        best = best.with_columns(
            label=pl.when(free).then("said").otherwise("label"),
            concept=pl.when(free).then("whole").otherwise("concept"),
            q=pl.when(free).then("whole_q").otherwise("q"),
            auroc=pl.when(free).then("whole_auroc").otherwise("auroc"),
            **{name: pl.when(free).then(None).otherwise(name) for name in ("f1", "f1_ci_low", "f1_ci_high", "null_f1")},
        ).drop("whole", "said", "whole_q", "whole_auroc")
    return best.drop("holds")


def _reason() -> pl.Expr:
    """Why a feature is unexplained."""
    return (
        pl.when(pl.col("label") != UNEXPLAINED).then(None)
        .when(pl.col("density") == 0).then(pl.lit("never active on these sequences"))
        .when(pl.col("concept").is_null()).then(pl.lit("fires with no tested concept on the selection side"))
        .when(pl.col("f1").is_null() | (pl.col("f1") < LABEL_F1)).then(pl.lit(f"best held-out F1 below {LABEL_F1}"))
        .when(pl.col("q") >= ALPHA).then(pl.lit(f"q not below {ALPHA}"))
        .otherwise(pl.lit("interval of F1 reaches its shuffled F1"))
    )  # fmt: skip


def _stability(subject: Subject, dictionary: Dictionary, data: Data, config, progress) -> pl.DataFrame:
    """`stability` and `stability_null` of every feature; empty where the domain writes things in one way only, and for
    features that have one activation of a sequence."""
    rng = np.random.default_rng((config.seed, 5))
    size = min(config.stability_sequences, len(data.readings))
    chosen = [data.readings[i] for i in np.sort(rng.choice(len(data.readings), size, replace=False))]
    schema = {"layer": pl.Int32, "feature": pl.Int64, "stability": pl.Float64, "stability_null": pl.Float64}
    if data.whole or not config.spellings or not any(data.domain.spellings(reading, 1, 0) for reading in chosen[:20]):
        return pl.DataFrame(schema=schema)
    sites = dictionary_sites("dictionary", dictionary)
    found = stability(
        partial(encoded, subject, sites), lambda text: read(subject, data.domain, text)[1], data.domain,
        list(progress(chosen, "other spellings")), n_spellings=config.spellings, seed=config.seed,
    )  # fmt: skip
    layers = np.repeat(np.asarray(dictionary.config.layers, dtype=np.int32), dictionary.config.n_features)
    places = np.tile(np.arange(dictionary.config.n_features), len(sites))
    frame = pl.DataFrame([layers, places, found.value, found.null], schema=schema)
    return frame.with_columns(pl.col("stability", "stability_null").fill_nan(None))
