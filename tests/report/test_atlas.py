"""What the atlas packs comes out again; tables that contradict each other are refused."""

import base64
import gzip
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from isotrace.base.errors import InputError
from isotrace.report.atlas.atlas import atlas_page
from isotrace.report.atlas.atlas_payload import NULL, pack, rounded

_spec = importlib.util.spec_from_file_location("atlas_benchmark", Path(__file__).parents[2] / "benchmarks" / "atlas.py")
made = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(made)


@pytest.fixture(scope="module")
def pictures():
    return [made.picture(smiles) for smiles in made.molecules(30)]


@pytest.fixture(scope="module")
def tables(pictures):
    found = made.tables(400, pictures)
    hole = pl.col("feature") == 7
    return replace(
        found,
        features=found.features.with_columns(
            *(pl.when(hole).then(None).otherwise(c).alias(c) for c in ("moran_i", "moran_null", "density")),
            # Distinct F1s, so that the order of the table is one.
            f1=pl.col("f1").fill_nan(None).rank("ordinal") / 1000,
        ).with_columns(pl.col("f1_ci_low", "f1_ci_high", "q").fill_nan(None)),
    )


def page_of(tables, pictures, **changes) -> str:
    summary = made.summary(tables.features.height, len(pictures)) | {"n_token_concepts": 480}
    structure = changes.pop("structure", None)
    return atlas_page(tables, title="Atlas <b>", summary=summary | changes, pictures=pictures, structure=structure)


def unpacked(block: str) -> pl.DataFrame:
    """What the format in atlas_payload.py says, read the slow way."""
    raw = gzip.decompress(base64.b64decode(block))
    length = int.from_bytes(raw[:4], "little")
    header, at = json.loads(raw[4 : 4 + length]), 4 + length
    columns = []
    for part in header:
        array = np.frombuffer(raw[at : at + 4 * part["n"]], np.uint8).reshape(4, -1).T.copy()
        array = array.view(np.float32 if part["kind"] == "number" else np.int32).ravel()
        at += 4 * part["n"]
        values: list = [None if (v != v or v == NULL) else v for v in array.tolist()]
        if part["kind"] == "text":
            values = [None if v is None else part["words"][v] for v in values]
        columns.append((part, values))
    assert at == len(raw)
    items: list = []
    found = {}
    for part, values in reversed(columns):
        if part["kind"] == "list":
            source = iter(items)
            values = [[next(source) for _ in range(n)] for n in values]
        items = values
        if part["name"]:
            found[part["name"]] = values
    return pl.DataFrame({part["name"]: found[part["name"]] for part, _ in columns if part["name"]}, strict=False)


def test_what_is_packed_comes_out():
    frame = pl.DataFrame(
        {
            "number": [1.5, None, float("inf"), -2e-30],
            "count": [0, None, 2**31 - 1, -7],
            "word": ["γ <b>", None, "γ <b>", ""],
            "nothing": [None] * 4,
            "positions": [[3, 1], [], [2], []],
            "texts": [["a", "b"], ["a"], [], []],
        },
        schema_overrides={"nothing": pl.String, "positions": pl.List(pl.Int16)},
    )
    assert_frame_equal(unpacked(pack(frame)), frame, check_dtypes=False, rel_tol=1e-4)


@pytest.mark.parametrize("bits", [9, 13])
def test_rounding_keeps_its_digits(bits):
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(5000) * 10.0 ** rng.integers(-20, 20, 5000)).astype(np.float32)
    near = rounded(values, bits)
    assert (np.abs(near / values - 1) <= 2.0 ** -(bits + 1)).all()
    assert not (near.view(np.uint32) & np.uint32((1 << (23 - bits)) - 1)).any()
    assert np.array_equal(rounded(near, bits), near)
    special = np.array([np.nan, np.inf, -np.inf, 0.0], np.float32)
    assert np.array_equal(rounded(special, bits), special, equal_nan=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {"features": t.features.drop("moran_i")}, "lacks moran_i"),
        (lambda t: {"features": pl.concat([t.features, t.features[:1]])}, "two rows for one feature"),
        (lambda t: {"features": t.features[5:]}, "which 'features' lacks"),
        (lambda t: {"concepts": t.concepts[1:]}, "which 'concepts' lacks"),
        (lambda t: {"sequences": t.sequences[1:]}, "which 'sequences' lacks"),
        (lambda t: {"examples": t.examples.with_columns(group=pl.lit("best"))}, "group other than"),
        (lambda t: {"examples": t.examples.with_columns(positions=pl.col("positions") + 500)}, "has position 5"),
        (lambda t: {"examples": t.examples.with_columns(values=pl.col("values").list.head(1))}, "more positions"),
    ],
)
def test_tables_that_contradict_each_other(tables, pictures, change, message):
    with pytest.raises(InputError, match=message):
        page_of(replace(tables, **change(tables)), pictures)


def test_pictures_and_summary_are_whole(tables, pictures):
    with pytest.raises(InputError, match="sequence 3 has examples but no picture"):
        page_of(tables, [None if i == 3 else p for i, p in enumerate(pictures)])
    with pytest.raises(InputError, match=r"lacks n_concepts, sources\.dictionary"):
        atlas_page(tables, title="", pictures=pictures, summary={
            k: v for k, v in made.summary(1, 1).items() if k != "n_concepts"} | {"sources": {}})  # fmt: skip
