"""The run folder of an annotation: its tables, its summary, the atlas, and features on a protein structure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isotrace.annotation.annotate import Annotation
from isotrace.base.errors import InputError
from isotrace.base.result import Result
from isotrace.base.runs import Run, to_jsonable
from isotrace.datasets.annotated import Data
from isotrace.domains.domain import Reading
from isotrace.domains.protein.sequence import residues
from isotrace.domains.protein.structure import Structure, match_chains, read_structure
from isotrace.report.atlas.atlas import AtlasTables, atlas_page
from isotrace.report.atlas.structure import structure_data, structure_page
from isotrace.report.page import number

TABLES = ("features", "associations", "examples", "sequences", "concepts", "coverage", "rejects")
STRUCTURE = "structure.html"
LABELLED, UNEXPLAINED = 40, 10
"""Features shown on a structure, at most."""
_K = 5  # residues that a chain and a sequence must share in a row before they are aligned
Activations = Callable[[Reading, list[tuple[int, int]]], np.ndarray]


class AnnotationResult(Result):
    """What the features of a dictionary mean: `summary` as docs/annotate.md lists it, the tables of TABLES, and
    `explanations` where a language model wrote some. The page is the atlas; `view` holds its `pictures` (of the rows of
    `sequences` that examples show, else None) and what its page of a protein structure shows, or None."""

    kind = "annotation"

    @classmethod
    def of(
        cls,
        annotation: Annotation,
        data: Data,
        *,
        structure: Path | None = None,
        activations: Activations | None = None,
    ) -> "AnnotationResult":
        """structure: PDB or mmCIF file. The annotated sequence closest to one of its chains is shown on it in
        structure.html, coloured by its features. Where there is none, the summary has a warning and no page is made.
        activations: (reading, [(layer, feature), …]) → float32 `[n, tokens]`; a structure needs it.
        """
        summary, shown = annotation.summary, None
        if structure is not None:
            if activations is None:
                raise ValueError("a structure needs the activations to show on it")
            try:
                shown = features_on_structure(annotation, data, structure, activations)
            except InputError as error:
                warning = f"no {STRUCTURE} was written: {error}"
                summary = summary | {"warnings": [*summary["warnings"], warning]}
        drawn = set(annotation.examples["index"].unique())
        pictures = [
            data.domain.picture(r) if i in drawn else None for i, r in zip(data.index, data.readings, strict=True)
        ]
        tables = {name: getattr(annotation, name) for name in TABLES}
        view = {"pictures": pictures, "structure": shown}
        return cls(to_jsonable(summary), to_jsonable(view), tables)

    def explained(self, table: pl.DataFrame) -> "AnnotationResult":
        """With the explanations of `table` (layer, feature, explanation, …) that passed detection."""
        own = self.tables["features"].drop("explanation")
        found = table.select("layer", "feature", "explanation")
        features = own.join(found, on=["layer", "feature"], how="left", maintain_order="left")
        return replace(self, tables={**self.tables, "features": features, "explanations": table})

    def to_dict(self) -> dict[str, Any]:
        return self.summary | {"rejects": self.tables["rejects"].to_dicts()}

    def to_frame(self) -> pl.DataFrame:
        """One row per feature."""
        return self.tables["features"]

    def page(self, manifest: Mapping[str, Any] | None = None) -> str:
        tables = {name: self.tables[name] for name in TABLES if name != "rejects"}
        return atlas_page(
            AtlasTables(**tables),
            title=f"Feature atlas of {self.summary['dictionary']}",
            summary=self.summary,
            pictures=self.view["pictures"],
            structure=STRUCTURE if self.view["structure"] else None,
        )

    def structure_page(self) -> str | None:
        """HTML of features on a protein structure; None where there is none."""
        return structure_page(**self.view["structure"]) if self.view["structure"] else None

    def write(self, run: Run) -> None:
        super().write(run)
        if page := self.structure_page():
            run.text(STRUCTURE, page)

    def told(self) -> Iterable[str]:
        keys = ("n_labelled", "n_features", "dictionary", "n_sequences")
        yield "{} of {} features of {} named, on {} sequences".format(*(self.summary[key] for key in keys))
        named = self.tables["features"].drop_nulls("label").sort("f1", descending=True, nulls_last=True)
        for row in named.head(3).iter_rows(named=True):
            yield f"layer {row['layer']} feature {row['feature']}: {row['label']}, F1 {number(row['f1'])}"

    def _repr_html_(self) -> str:
        return "".join(f"<p>{escape(line)}</p>" for line in (*self.told(), *self.summary["warnings"]))


def features_on_structure(annotation: Annotation, data: Data, path: Path, activations: Activations) -> dict[str, Any]:
    """What `structure_page` takes: of the features that fire on the sequence's residues, up to `LABELLED` with a label
    (best F1 first), then up to `UNEXPLAINED` without (largest share of their own maximum first).

    Raises InputError for a file that cannot be read, for sequences that are no proteins, where none matches a chain,
    and where no feature fires.
    """
    found = read_structure(path)
    place = closest(found, data)
    reading = data.readings[place]
    if annotation.summary.get("rows") == "sequences":
        raise InputError("features of whole sequences stand at no residue.")
    frame = annotation.features.filter(pl.col("max_activation") > 0)
    values = activations(reading, list(frame.select("layer", "feature").rows()))
    on_residues = values * np.asarray([bool(covered) for covered in reading.elements])
    frame = frame.with_columns(place=np.arange(frame.height), peak=on_residues.max(1)).filter(pl.col("peak") > 0)
    if not frame.height:
        raise InputError(f"no feature fires on the sequence of {found.name}.")
    labelled = frame.filter(pl.col("label") != "unexplained").sort("f1", descending=True, nulls_last=True)
    others = frame.filter(pl.col("label") == "unexplained")
    others = others.sort(pl.col("peak") / pl.col("max_activation"), descending=True)
    chosen = [*labelled.head(LABELLED).to_dicts(), *others.head(UNEXPLAINED).to_dicts()]
    tracks = {_track(row): values[row["place"]].tolist() for row in chosen}
    name = data.names[place] or f"sequence {data.index[place]}"
    count = f"{len(tracks)} of the {frame.height} features that fire here"
    return {
        "data": structure_data(path, reading, tracks),
        "title": f"Features of {annotation.summary['dictionary']} on a structure",
        "lead": f"{name} on {found.name}: {count}.",
        "back": "report.html",
    }


def closest(structure: Structure, data: Data) -> int:
    """The first, in the order of 5-mers shared with a chain, of the sequences that match one.

    Raises InputError if none does, see `match_chains`, or if the sequences are no proteins."""
    if data.domain.element != "residue":
        raise InputError(f"a structure shows proteins, and {data.domain.name} is another domain.")
    texts = [residues(reading.text) for reading in data.readings]
    words = [_words(chain.sequence) for chain in structure.chains]
    shared = [max(len(_words(text) & chain) for chain in words) for text in texts]
    reason: InputError | None = None
    for place in sorted(range(len(texts)), key=lambda i: -shared[i]):
        if not shared[place]:
            break
        try:
            match_chains(structure, texts[place])
        except InputError as error:
            reason = reason or error
        else:
            return place
    raise reason or InputError(f"no chain of {structure.name} has {_K} residues in a row in common with a sequence.")


def _words(sequence: str) -> set[str]:
    return {sequence[i : i + _K] for i in range(max(1, len(sequence) - _K + 1))}


def _track(row: dict[str, Any]) -> str:
    score = "" if row["f1"] is None or row["label"] == "unexplained" else f" (F1 {number(row['f1'])})"
    return f"{row['layer']}.{row['feature']} {row['label']}{score}"
