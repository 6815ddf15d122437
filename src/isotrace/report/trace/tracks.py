"""Labels of elements that a user sets beside a trace (secondary structure, paratope), read as annotation reads them,
and what each of them carries of the attribution."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from isotrace.base.errors import InputError
from isotrace.datasets.concept_files import read_concept_file
from isotrace.domains.domain import Domain, Reading, Track
from isotrace.stats.permutation import q_values

MEASURES = ("mass", "hidden")
RANGE = (0.025, 0.975)


def read_tracks(path: Path, domain: Domain, reading: Reading) -> tuple[Track, ...]:
    """A track per label column, or per group of patterns, of the sequence that is traced. Raises InputError, with what
    to do, for a file that cannot be read or labels no elements, and for labels that do not fit the sequence."""
    source = read_concept_file(path, domain)
    known = [i for i, concept in enumerate(source.concepts) if concept.kind == "token"]
    if not known:
        raise InputError(f"{path} labels no {domain.element}s: give a column token:NAME, or patterns.")
    try:
        instances = source.label(0, reading).instances
    except InputError as error:
        wants = f"--tracks takes a line for each sequence that is traced, one character per {domain.element}"
        raise InputError(
            f"{error}, of the sequence that is traced ({reading.n_elements} {domain.element}s): {wants}."
        ) from None
    tracks: dict[str, list[tuple[str, tuple[int, ...]]]] = {source.concepts[i].group: [] for i in known}
    for i, tokens in instances:
        concept, elements = source.concepts[i], sorted({e for t in tokens for e in reading.elements[t]})
        if elements and concept.kind == "token":
            tracks[concept.group].append((concept.name.removeprefix(f"{concept.group}="), tuple(elements)))
    return tuple(Track(name, tuple(sorted(spans, key=lambda span: span[1]))) for name, spans in tracks.items())


def track_rows(tracks: Sequence[Track], units: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per label, those of one track together: its `elements`, their `share` of all, and the share that they carry
    of the elements' `mass`, and of what hiding them does without its sign (`hidden`), over the elements where it is
    measured. Beside either, the central 95 % of that share over all rotations of the label along the sequence
    (`…_range`), which keep its stretches as long as they are, two-sided p over them and q over all labels (Benjamini
    and Hochberg). None where nothing is carried at all, or the label is everywhere."""
    rows = []
    values = {name: np.asarray([np.nan if u[name] is None else abs(u[name]) for u in units]) for name in MEASURES}
    for track in tracks:
        for label in dict.fromkeys(label for label, _ in track.spans):
            elements = sorted({e for one, own in track.spans if one == label for e in own})
            row = {"track": track.name, "label": label, "elements": elements, "share": len(elements) / len(units)}
            for name in MEASURES:
                row |= {f"{name}{key}": value for key, value in _carried(values[name], elements).items()}
            rows.append(row)
    for name in MEASURES:
        tested = [row for row in rows if row[f"{name}_p"] is not None]
        p = np.asarray([row[f"{name}_p"] for row in tested])
        q = q_values(p, np.ones(len(p), dtype=bool), len(p)) if tested else p
        for row in rows:
            row[f"{name}_q"] = None
        for row, value in zip(tested, q.tolist(), strict=True):
            row[f"{name}_q"] = value
    return rows


def _carried(values: np.ndarray, elements: Sequence[int]) -> dict[str, Any]:
    """Of `values [n]` ≥ 0, NaN where not known: the share on `elements`, and over all n rotations of them."""
    n, known = len(values), np.nan_to_num(values)
    if not known.sum() or len(elements) in (0, n):
        return {"": None, "_range": None, "_p": None}
    rolled = np.zeros(n)
    for element in elements:  # entry s: the sum over the elements, each moved by s
        rolled += np.roll(known, -element)
    shares = rolled / known.sum()
    low, high = (float(np.quantile(shares, end)) for end in RANGE)
    sides = (shares >= shares[0] - 1e-12).mean(), (shares <= shares[0] + 1e-12).mean()
    return {"": float(shares[0]), "_range": [low, high], "_p": float(min(1.0, 2 * min(sides)))}
