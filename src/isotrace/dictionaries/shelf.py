"""A dictionary's shelf: what was found out about it, in the folder `about` beside it.

    about/names/     what its features are called: names.json, features.parquet, examples.parquet (with the sequences)
    about/fidelity/  what is left of its subject when it stands in: fidelity.json, as `isotrace evaluate` writes it
    about/card/      what its card says besides: card.json

Each JSON file names its format and the identity of the dictionary it is about: of another dictionary nothing is read.
"""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from isotrace.base.errors import DictionaryError
from isotrace.base.files import locked, write_whole
from isotrace.base.identity import identity
from isotrace.base.runs import MANIFEST, Run, dumps, read_manifest
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.saving import dictionary_folder

ABOUT, FORMAT_VERSION = "about", 1
TABLES = {"names": ("features", "examples"), "fidelity": (), "card": ()}
RESULTS = {"names": "annotation", "fidelity": "evaluation"}
"""Which result a part comes from, and the command's name for it."""
SHARED = ("seed", "mask_rate", "n_bootstrap", "n_sequences", "n_tokens", "n_predicted", "n_masked", "clean")
UNEXPLAINED = "unexplained"
"""Label of a feature that no concept fits."""
Key = tuple[int, int]
"""(layer, feature)."""


@dataclass(frozen=True, eq=False)
class FeatureTables:
    """`features`: one row per feature; `examples`: sequences on which it fires. Either may be empty."""

    features: pl.DataFrame = field(default_factory=pl.DataFrame)
    examples: pl.DataFrame = field(default_factory=pl.DataFrame)

    def of(self, keys: Iterable[Key]) -> dict[Key, dict[str, Any]]:
        """Rows of the given (layer, feature) pairs, as dictionaries; unannotated features are missing."""
        return {(row["layer"], row["feature"]): row for row in self._select(self.features, keys)}

    @staticmethod
    def named(row: Mapping[str, Any]) -> bool:
        """Whether the row of `of` gives a name."""
        return row.get("label") not in (None, "", UNEXPLAINED)

    @staticmethod
    def label(row: Mapping[str, Any]) -> str:
        """The name in a row of `of`; an empty row is a feature nobody annotated."""
        return row.get("label") or (UNEXPLAINED if row else "not annotated")

    def examples_of(self, keys: Iterable[Key]) -> dict[Key, list[dict[str, Any]]]:
        """Each with its text in `sequence`."""
        found: dict[Key, list[dict[str, Any]]] = {}
        for row in self._select(self.examples, keys):
            found.setdefault((row["layer"], row["feature"]), []).append(row)
        return found

    @staticmethod
    def _select(frame: pl.DataFrame, keys: Iterable[Key]) -> list[dict[str, Any]]:
        wanted = pl.DataFrame(list(keys), schema={"layer": pl.Int32, "feature": pl.Int64}, orient="row")
        if frame.is_empty() or wanted.is_empty():
            return []
        return frame.join(wanted, on=["layer", "feature"], how="semi", maintain_order="left").to_dicts()


@dataclass(frozen=True, eq=False)
class Shelf:
    """`fidelity`: the dictionary's entry of an evaluation with what all its entries share, None if it was never
    evaluated. `tables`: empty if it was never annotated. `card`: None without one."""

    tables: FeatureTables = FeatureTables()
    fidelity: dict[str, Any] | None = None
    card: dict[str, Any] | None = None


@dataclass(frozen=True, eq=False)
class Part:
    content: dict[str, Any]
    tables: Mapping[str, pl.DataFrame]


def shelf_of(dictionary: Dictionary, *, names: Path | None = None, fidelity: Path | None = None) -> Shelf:
    """What stands on the shelf of a dictionary that was loaded; an empty one for a dictionary made in memory.

    `names`, `fidelity`: run folders of `isotrace annotate` and `isotrace evaluate` to read instead. Raises
    DictionaryError for what is about another dictionary, damaged, of another format, or no such run.
    """
    own = identity(dictionary)
    given = {"names": names, "fidelity": fidelity, "card": None}
    found: dict[str, Part | None] = {}
    for part, run in given.items():
        if run is not None:
            found[part] = part_of_run(part, run, own)
        else:
            found[part] = None if dictionary.folder is None else read_part(part, dictionary.folder, own)
    named, measured, card = (found[part] for part in given)
    return Shelf(
        FeatureTables(**named.tables) if named else FeatureTables(),
        _entry(measured.content, own) if measured else None,
        card.content if card else None,
    )


def shelf_folder(source: str | Path | Dictionary) -> Path:
    """The folder to attach to. Raises DictionaryError for a dictionary that is not in a folder of the user's own."""
    source = source.folder or "a dictionary in memory" if isinstance(source, Dictionary) else source
    if str(source).partition(":")[0] in ("bundled", "hf"):
        raise DictionaryError(f"nothing can be attached to {source}: give its runs as --names and --fidelity instead.")
    return dictionary_folder(source)


def attach(part: str, folder: Path, dictionary: Dictionary, run: Path) -> Path:
    """Put what a run of `isotrace annotate` (names) or `isotrace evaluate` (fidelity) found on the shelf in `folder`,
    in place of what stood there; returns its folder. Raises DictionaryError as `shelf_of`, RunError if the disk
    refuses."""
    own = identity(dictionary)
    return put(part, folder, own, part_of_run(part, run, own))


def put(part: str, folder: Path, dictionary_id: str, found: Part) -> Path:
    """Write a part of the shelf in `folder`, of the dictionary with that identity."""
    files = {}
    for name in TABLES[part]:
        table, buffer = found.tables[name], io.BytesIO()
        floats = [column for column, kind in table.schema.items() if kind == pl.Float64]
        table.with_columns(pl.col(floats).cast(pl.Float32)).write_parquet(
            buffer, compression="zstd", compression_level=19
        )
        files[f"{name}.parquet"] = buffer.getvalue()
    head = {"format": f"isotrace-{part}", "format_version": FORMAT_VERSION, "dictionary_id": dictionary_id}
    files[f"{part}.json"] = (dumps(head | {"content": found.content}, indent=2) + "\n").encode()
    with locked(folder):
        # the folder of a training run lists what is in it, so that it can be made anew
        run = Run(folder, read_manifest(folder)) if (folder / MANIFEST).is_file() else None
        for name, data in files.items():
            inner = f"{ABOUT}/{part}/{name}"
            _ = write_whole(folder / inner, data) if run is None else run.bytes(inner, data)
    return folder / ABOUT / part


def read_part(part: str, folder: Path, dictionary_id: str) -> Part | None:
    """None where the shelf in `folder` does not have it. Raises DictionaryError as `shelf_of`."""
    place = folder / ABOUT / part
    if not (place / f"{part}.json").is_file():
        return None
    try:
        record = json.loads((place / f"{part}.json").read_bytes())
        kind, content = (record["format"], record["format_version"]), record["content"]
        own = record["dictionary_id"]
        tables = {name: pl.read_parquet(place / f"{name}.parquet") for name in TABLES[part]}
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError) as error:
        reason = str(error).splitlines()[0]
        raise DictionaryError(f"{place} cannot be read ({reason}): attach it again, or remove it.") from None
    if kind != (f"isotrace-{part}", FORMAT_VERSION):
        raise DictionaryError(f"{place} has the format {kind[0]} {kind[1]}, not {FORMAT_VERSION}: attach it again.")
    if own != dictionary_id:
        raise DictionaryError(f"{place} is about another dictionary, not the one beside it: remove it.")
    return Part(content, tables)


def part_of_run(part: str, run: Path, dictionary_id: str) -> Part:
    """The same from a run folder. Raises DictionaryError for a run of another dictionary or another command."""
    kind = RESULTS[part]
    command = {"names": "annotate", "fidelity": "evaluate"}[part]
    try:
        content = json.loads((run / f"{kind}.json").read_bytes())
        entries = content["dictionaries"] if part == "fidelity" else [content]
        about = [entry["dictionary_id"] for entry in entries]
        tables = {name: pl.read_parquet(run / f"{name}.parquet") for name in TABLES[part]}
        if part == "names":
            sequences = pl.read_parquet(run / "sequences.parquet", columns=["index", "sequence"])
            examples = tables["examples"].filter(pl.col("positions").list.len() > 0)
            examples = examples.join(sequences, on="index", how="left", maintain_order="left").drop("index")
            tables["examples"] = examples.sort("layer", "feature", maintain_order=True)
    except (OSError, ValueError, KeyError, TypeError, pl.exceptions.PolarsError):
        raise DictionaryError(f"{run} holds no run of isotrace {command}: give the folder of its --out.") from None
    if dictionary_id not in about:
        raise DictionaryError(f"the {part} in {run} are of another dictionary: run isotrace {command} on this one.")
    return Part(content, tables)


def _entry(evaluation: Mapping[str, Any], dictionary_id: str) -> dict[str, Any]:
    entry = next(one for one in evaluation["dictionaries"] if one["dictionary_id"] == dictionary_id)
    return {key: evaluation[key] for key in SHARED if key in evaluation} | entry
