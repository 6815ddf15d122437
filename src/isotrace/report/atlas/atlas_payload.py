"""Tables packed for a page: columns as binary arrays, compressed, so that 10,000 features open in a moment.

A block is base64 of gzip of: the length of the header (uint32, little-endian), the header (JSON), the arrays. The
header lists the columns in order as {name, kind, n} and, for text, its words. Kinds: `number` float32, NaN = null;
`integer` int32, −2³¹ = null; `text` integers that count into the words; `list` the lengths as integers, then a
column without a name that holds the items of all rows. Every array is stored with its bytes shuffled (all first bytes,
then all second bytes, …), which gzip compresses better. `templates/atlas_data.js` reads it.
"""

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isotrace.base.errors import InputError

NULL = -(2**31)
MAX_ASSOCIATIONS = 12  # of one feature, its best first
PICTURES_PER_BLOCK = 250
GROUPS = ("top", "middle", "near-miss")
# float32 keeps 23 bits of mantissa; 13 are four significant digits, 9 are three.
TABLE_BITS, VALUE_BITS = 13, 9

_FEATURE = (
    "layer", "feature", "label", "concept", "f1", "f1_ci_low", "f1_ci_high", "null_f1", "q", "reason", "density",
    "max_activation", "mean_activation", "moran_i", "moran_null", "stability", "stability_null",
)  # fmt: skip
_DETAIL = ("explanation", "histogram", "promoted", "promoted_by", "suppressed", "suppressed_by")
_ASSOCIATION = (
    "concept", "threshold", "f1", "f1_ci_low", "f1_ci_high", "precision", "recall", "f1_any", "f1_full", "f1_interplm",
    "f1_intermol", "auroc", "auroc_ci_low", "auroc_ci_high", "odds_ratio", "spearman", "pooling", "p", "q",
)  # fmt: skip
COLUMNS = {
    "features": [*_FEATURE, *_DETAIL],
    "associations": ["source", "layer", "feature", *_ASSOCIATION, "feature_rank", "concept_rank"],
    "examples": ["layer", "feature", "group", "index", "activation", "positions", "values"],
    "sequences": ["index", "name", "sequence", "group", "side"],
    "concepts": ["concept", "group", "kind", "n_positive", "n_instances", "reason"],
    "coverage": ["source", "layer", "n_alive", "concepts_f1_50", "concepts_f1_80"],
}


@dataclass(frozen=True)
class AtlasTables:
    """The tables of an annotated run; docs/atlas.md names every column.

    `coverage` may also have n_features, n_labelled and intervals (`concepts_f1_50_ci_low`, …): what it lacks is not
    drawn.
    Raises InputError for a table that lacks a column.
    """

    features: pl.DataFrame
    associations: pl.DataFrame
    examples: pl.DataFrame
    sequences: pl.DataFrame
    concepts: pl.DataFrame
    coverage: pl.DataFrame

    def __post_init__(self) -> None:
        for table, columns in COLUMNS.items():
            if missing := [c for c in columns if c not in getattr(self, table).columns]:
                raise InputError(f"table {table!r} lacks {', '.join(missing)}: write it by `isotrace annotate`.")


def blocks(tables: AtlasTables, sources: Sequence[str], pictures: Sequence[Mapping[str, Any] | None]) -> dict[str, str]:
    """What the page holds, by name: `features` and `concepts`, which it needs at once, before all others."""
    features = tables.features.with_row_index("row").with_columns(pl.col("row").cast(pl.Int32))
    keys = features.select("row", "layer", "feature")
    if features.select("layer", "feature").is_duplicated().any():
        raise InputError("table 'features' has two rows for one feature: a feature is one row.")
    concepts = _with_best(tables, sources)
    examples = _placed(tables.examples, keys, "examples").with_columns(
        pl.col("group").replace_strict(list(GROUPS), range(len(GROUPS)), default=None, return_dtype=pl.Int32)
    )
    if examples["group"].has_nulls():
        raise InputError(f"table 'examples' has a group other than {', '.join(GROUPS)}.")
    examples = examples.sort("row", "group", "activation", descending=[False, False, True], nulls_last=True)
    used = examples["index"].unique(maintain_order=True)
    examples = examples.with_columns(slot=pl.col("index").replace_strict(used, range(len(used)), return_dtype=pl.Int32))
    known = tables.sequences.with_row_index("place")
    sequences = used.to_frame().join(known, on="index", how="left", maintain_order="left")
    drawn = _pictures(examples, sequences, pictures)
    associations = _placed(tables.associations.filter(source="dictionary"), keys, "associations")
    counts = associations.group_by("row").agg(n_associations=pl.len().cast(pl.Int32))
    associations = associations.sort("row", "feature_rank").filter(
        pl.int_range(pl.len()).over("row") < MAX_ASSOCIATIONS
    )
    core = features.join(counts, on="row", how="left", maintain_order="left").with_columns(
        pl.col("n_associations").fill_null(0)
    )
    return {
        "features": pack(core.select(*_FEATURE, "n_associations")),
        "concepts": pack(concepts),
        "details": pack(features.select(_DETAIL)),
        "associations": pack(associations.select("row", *_ASSOCIATION)),
        "examples": pack(examples.select("row", "group", "slot", "activation", "positions", "values"), VALUE_BITS),
        "sequences": pack(sequences.select("index", "name", "sequence", "group", "side")),
        **{
            f"pictures-{i}": _compressed(_dump(drawn[start : start + PICTURES_PER_BLOCK]))
            for i, start in enumerate(range(0, len(drawn), PICTURES_PER_BLOCK))
        },
    }


def pack(frame: pl.DataFrame, bits: int = TABLE_BITS) -> str:
    """`frame` as a block; floats keep `bits` of mantissa. Raises InputError for a column of another type."""
    columns: list[dict[str, Any]] = []
    arrays: list[np.ndarray] = []

    def add(name: str, series: pl.Series) -> None:
        if isinstance(series.dtype, (pl.List, pl.Array)):
            lengths = series.list.len().fill_null(0)
            column, array = {"kind": "list"}, lengths.cast(pl.Int32).to_numpy()
        elif series.dtype.is_float():
            column, array = {"kind": "number"}, rounded(series.cast(pl.Float32).to_numpy(), bits)
        elif series.dtype.is_integer():
            column, array = {"kind": "integer"}, series.cast(pl.Int32).fill_null(NULL).to_numpy()
        elif series.dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null):
            words = series.cast(pl.String).drop_nulls().unique(maintain_order=True)
            codes = series.cast(pl.String).replace_strict(words, range(len(words)), default=None, return_dtype=pl.Int32)
            column, array = {"kind": "text", "words": words.to_list()}, codes.fill_null(NULL).to_numpy()
        else:
            raise InputError(f"column {name!r} is {series.dtype}: numbers, text and lists of them can be shown.")
        columns.append({"name": name, "n": len(array)} | column)
        arrays.append(array)
        if column["kind"] == "list":
            add("", series.filter(series.list.len() > 0).explode())

    for series in frame:
        add(series.name, series)
    return _compressed(_dump(columns), *(_shuffled(a) for a in arrays))


def rounded(values: np.ndarray, bits: int) -> np.ndarray:
    """float32 with `bits` of mantissa, rounded to the nearest; NaN and infinities as they are."""
    raw = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    step = np.uint32(1 << (23 - bits))
    near = (raw + (step >> np.uint32(1))) & ~(step - np.uint32(1))
    return np.where(np.isfinite(values), near, raw).view(np.float32)


def _with_best(tables: AtlasTables, sources: Sequence[str]) -> pl.DataFrame:
    """Concepts with, per source, the best feature as chosen on the selection side and its held-out score: F1 of a token
    concept, AUROC of a class, Spearman's ρ of a value."""
    frame = tables.concepts.select(COLUMNS["concepts"])
    if frame["concept"].is_duplicated().any():
        raise InputError("table 'concepts' has two rows for one concept: names are unique.")
    joined = tables.associations.join(frame.select("concept", kind_of="kind"), on="concept", how="left")
    if joined["kind_of"].has_nulls():
        unknown = joined.filter(pl.col("kind_of").is_null())["concept"][0]
        raise InputError(f"table 'associations' names concept {unknown!r}, which 'concepts' lacks.")
    kind = pl.col("kind_of")
    token, value = kind == "token", kind == "value"
    best = (
        joined.sort("concept_rank", nulls_last=True)
        .unique(["source", "concept"], keep="first", maintain_order=True)
        .select(
            "source",
            "concept",
            "layer",
            "feature",
            "q",
            score=pl.when(token).then("f1").when(value).then("spearman").otherwise("auroc"),
            low=pl.when(token).then("f1_ci_low").when(value).then(None).otherwise("auroc_ci_low"),
            high=pl.when(token).then("f1_ci_high").when(value).then(None).otherwise("auroc_ci_high"),
        )
    )
    for source in sources:
        part = best.filter(source=source).drop("source")
        part = part.rename({c: f"{source} {c}" for c in part.columns if c != "concept"})
        frame = frame.join(part, on="concept", how="left", maintain_order="left")
    return frame


def _placed(table: pl.DataFrame, keys: pl.DataFrame, name: str) -> pl.DataFrame:
    """`table` with the row of its feature, which must be in the table of features."""
    on = ["layer", "feature"]
    placed = table.join(keys, on=on, how="left", maintain_order="left")
    if placed["row"].has_nulls():
        layer, feature = placed.filter(pl.col("row").is_null()).select(on).row(0)
        raise InputError(f"table {name!r} names feature {feature} of layer {layer}, which 'features' lacks.")
    return placed


def _pictures(
    examples: pl.DataFrame, sequences: pl.DataFrame, pictures: Sequence[Mapping[str, Any] | None]
) -> list[Mapping[str, Any]]:
    """The pictures in the order of the sequences, after checking that every activation has a token to stand on."""
    if sequences["place"].has_nulls():
        index = sequences.filter(pl.col("place").is_null())["index"][0]
        raise InputError(f"table 'examples' names sequence {index}, which 'sequences' lacks.")
    drawn: list[Mapping[str, Any]] = []
    for index, place in sequences.select("index", "place").iter_rows():
        picture = pictures[place] if place < len(pictures) else None
        if picture is None:
            raise InputError(f"sequence {index} has examples but no picture: draw every sequence that examples name.")
        drawn.append(picture)
    uneven = examples.filter(pl.col("positions").list.len() != pl.col("values").list.len())
    if len(uneven):
        raise InputError(f"an example of sequence {uneven['index'][0]} has more positions than values, or fewer.")
    ends = examples.group_by("slot").agg(
        last=pl.col("positions").list.max().max(), first=pl.col("positions").list.min().min()
    )
    for slot, last, first in ends.drop_nulls().iter_rows():
        n_tokens = len(drawn[slot]["tokens"])
        if last >= n_tokens or first < 0:
            bad = last if last >= n_tokens else first
            raise InputError(
                f"an example of sequence {sequences['index'][slot]} has position {bad}, "
                f"but its picture has {n_tokens} tokens: draw it with the tokenizer that the features were read with."
            )
    return drawn


def _shuffled(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).view(np.uint8).reshape(-1, 4).T.tobytes()


def _dump(data: Any) -> bytes:
    return json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def _compressed(header: bytes, *arrays: bytes) -> str:
    raw = b"".join([len(header).to_bytes(4, "little"), header, *arrays])
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode()
