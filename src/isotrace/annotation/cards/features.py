"""Reading the names and examples of a dictionary's features, as `annotate` wrote them beside it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from isotrace.base.errors import DictionaryError


@dataclass(frozen=True)
class FeatureTables:
    """`features`: one row per feature; `examples`: sequences on which it fires. Either may be empty."""

    features: pl.DataFrame
    examples: pl.DataFrame

    def of(self, keys: list[tuple[int, int]]) -> dict[tuple[int, int], dict[str, Any]]:
        """Rows of the given (layer, feature) pairs, as dictionaries; unannotated features are missing."""
        return {(row["layer"], row["feature"]): row for row in self._select(self.features, keys)}

    @staticmethod
    def label(row: dict[str, Any]) -> str:
        """The name in a row of `of`; an empty row is a feature nobody annotated."""
        return row.get("label") or ("unexplained" if row else "not annotated")

    def examples_of(self, keys: list[tuple[int, int]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
        found: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for row in self._select(self.examples, keys):
            found.setdefault((row["layer"], row["feature"]), []).append(row)
        return found

    @staticmethod
    def _select(frame: pl.DataFrame, keys: list[tuple[int, int]]) -> list[dict[str, Any]]:
        if frame.is_empty() or not keys:
            return []
        wanted = pl.DataFrame(keys, schema={"layer": pl.Int32, "feature": pl.Int64}, orient="row")
        return frame.join(wanted, on=["layer", "feature"], how="semi", maintain_order="left").to_dicts()


def load_features(folder: Path) -> FeatureTables:
    """Empty tables if the dictionary was never annotated; DictionaryError if the tables cannot be read."""
    frames = []
    for name in ("features", "examples"):
        path = folder / f"{name}.parquet"
        try:
            frames.append(pl.read_parquet(path) if path.is_file() else pl.DataFrame())
        except Exception as error:
            raise DictionaryError(f"{path.name} of {folder.name} cannot be read: get the dictionary again.") from error
    return FeatureTables(*frames)
