"""The run folder of an annotation: its tables, its summary, the atlas, and features on a protein structure."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from isotrace.annotation.annotate import Annotation
from isotrace.base.errors import InputError
from isotrace.base.runs import Run
from isotrace.datasets.annotated import Data
from isotrace.domains.domain import Reading
from isotrace.domains.protein.sequence import residues
from isotrace.domains.protein.structure import Structure, match_chains, read_structure
from isotrace.report.atlas.atlas import AtlasTables, atlas_page
from isotrace.report.atlas.structure import structure_page
from isotrace.report.page import number

TABLES = ("features", "associations", "examples", "sequences", "concepts", "coverage", "rejects")
STRUCTURE = "structure.html"
LABELLED, UNEXPLAINED = 40, 10
"""Features shown on a structure, at most."""
_K = 5  # residues that a chain and a sequence must share in a row before they are aligned
Activations = Callable[[Reading, list[tuple[int, int]]], np.ndarray]


def save_annotation(
    run: Run,
    annotation: Annotation,
    data: Data,
    *,
    structure: Path | None = None,
    activations: Activations | None = None,
) -> None:
    """Write `annotation` into the open run; docs/annotate.md lists the files.

    structure: PDB or mmCIF file. The annotated sequence closest to one of its chains is shown on it in
        structure.html, coloured by its features. Where there is none, a warning is added to the summary of
        `annotation`, in place, and the page is left out.
    activations: (reading, [(layer, feature), …]) → float32 `[n, tokens]`; a structure needs it.
    """
    page = None
    if structure is not None:
        if activations is None:
            raise ValueError("a structure needs the activations to show on it")
        try:
            page = features_on_structure(annotation, data, structure, activations)
        except InputError as error:
            warning = f"no {STRUCTURE} was written: {error}"
            if warning not in annotation.summary["warnings"]:  # a run may be saved again with explanations
                annotation.summary["warnings"].append(warning)
    for name in TABLES:
        run.table(name, getattr(annotation, name))
    run.json("annotation", annotation.to_dict())
    run.text("atlas.html", atlas(annotation, data, structure=None if page is None else STRUCTURE))
    if page is not None:
        run.text(STRUCTURE, page)


def atlas(annotation: Annotation, data: Data, *, structure: str | None = None) -> str:
    """The atlas as HTML. Only sequences that examples show are drawn; `structure` is linked to."""
    shown = set(annotation.examples["index"].unique())
    drawn = [data.domain.picture(r) if i in shown else None for i, r in zip(data.index, data.readings, strict=True)]
    tables = {name: getattr(annotation, name) for name in TABLES if name != "rejects"}
    title = f"Feature atlas of {annotation.summary['dictionary']}"
    return atlas_page(
        AtlasTables(**tables), title=title, summary=annotation.summary, pictures=drawn, structure=structure
    )


def features_on_structure(annotation: Annotation, data: Data, path: Path, activations: Activations) -> str:
    """The structure page as HTML: of the features that fire on the sequence's residues, up to `LABELLED` with a label
    (best F1 first), then up to `UNEXPLAINED` without (largest share of their own maximum first).

    Raises InputError for a file that cannot be read, for sequences that are no proteins, where none matches a chain,
    and where no feature fires.
    """
    found = read_structure(path)
    place = closest(found, data)
    reading = data.readings[place]
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
    lead = Markup('{} on {}: {} of the {} features that fire here. <a href="atlas.html">All features</a>')
    return structure_page(
        path,
        reading,
        tracks,
        title=f"Features of {annotation.summary['dictionary']} on a structure",
        lead=lead.format(name, found.name, len(tracks), frame.height),
    )


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
