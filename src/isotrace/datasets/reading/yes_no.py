"""Columns of yes and no in a table, whatever they are called."""

import numpy as np
import polars as pl

from isotrace.datasets.reading.cells import is_missing

WORDS = {"1": 1.0, "1.0": 1.0, "true": 1.0, "yes": 1.0, "0": 0.0, "0.0": 0.0, "false": 0.0, "no": 0.0}
MOST = 12
"""Different cells of such a column: yes, no, and ways to leave one empty."""


def yes_no(table: pl.DataFrame) -> dict[str, np.ndarray]:
    """Name → float64 `[rows]`, 1, 0, or NaN for a missing cell, of each column that holds both and nothing else."""
    found = {}
    for name in table.columns:
        if name in ("index", "name", "sequence") or table[name].dtype.is_nested():
            continue
        cells = table[name].cast(pl.String, strict=False).str.strip_chars().str.to_lowercase()
        kinds = cells.unique().to_list()
        known = {WORDS.get(cell) for cell in kinds if not is_missing(cell)}
        if len(kinds) <= MOST and known == {0.0, 1.0}:
            values = cells.replace_strict(WORDS, default=None, return_dtype=pl.Float64)
            found[name] = values.fill_null(np.nan).to_numpy()
    return found
