"""Where the weights went: size and rank of the change of every matrix, and whether it writes what features write."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from isotrace.dictionaries.dictionary import Dictionary
from isotrace.stats.share import share
from isotrace.subjects.subject import Subject

RANK = 1e-6
"""Singular values below this share of the largest count as 0: weights are float32."""
SCHEMA = {
    "matrix": pl.String, "rows": pl.Int64, "columns": pl.Int64, "change": pl.Float64, "stable_rank": pl.Float64,
    "layer": pl.Int64, "span": pl.Int64, "share": pl.Float64, "share_random": pl.Float64,
    "circuit_span": pl.Int64, "circuit_share": pl.Float64, "circuit_share_random": pl.Float64,
}  # fmt: skip


def matrices(
    before: Subject, after: Subject, dictionary: Dictionary | None = None, circuit: Sequence[np.ndarray] = ()
) -> pl.DataFrame:
    """A row per matrix of both subjects, biases and norms left out: `change` ‖ΔW‖/‖W‖, `stable_rank` ‖ΔW‖_F²/‖ΔW‖₂²,
    NaN of one that has not changed.

    Of matrices that write where `dictionary` does also `layer`, `span`, the number of directions that its decoder rows
    of that layer span, `share`, that of ‖ΔW‖² which is written along them, and `share_random`, that of a random
    matrix's output, span / d. `circuit`: features of each source layer, of whose rows alone the same is told.
    """
    own, other = (dict(subject.model.base_model.named_parameters()) for subject in (before, after))
    writers = {} if dictionary is None else _writers(before, dictionary)
    rows: list[dict[str, Any]] = []
    for name, weight in own.items():
        if weight.ndim != 2 or name not in other or other[name].shape != weight.shape:
            continue
        change = (other[name] - weight).double()
        row = {"matrix": name, "rows": weight.shape[0], "columns": weight.shape[1]} | sizes(change, weight)
        if dictionary is not None and id(weight) in writers:
            target = writers[id(weight)]
            layer = dictionary.config.layers[target]
            moved = (after.neuron_writes(layer)[0] - before.neuron_writes(layer)[0]).double()
            whole = written_to(dictionary, target, [None] * dictionary.config.n_layers)
            row |= {"layer": layer} | dict(zip(("span", "share", "share_random"), inside(moved, whole), strict=True))
            if len(circuit):
                found = inside(moved, written_to(dictionary, target, circuit))
                row |= dict(zip(("circuit_span", "circuit_share", "circuit_share_random"), found, strict=True))
        rows.append(row)
    return pl.DataFrame(rows, schema=SCHEMA)


def sizes(change: Tensor, weight: Tensor) -> dict[str, float]:
    """`change`, `stable_rank` of one matrix."""
    square = float(change.square().sum())
    small = change if change.shape[0] <= change.shape[1] else change.T
    largest = float(torch.linalg.eigvalsh(small @ small.T)[-1])
    norm = float(weight.double().square().sum())
    return {"change": float(np.sqrt(share(square, norm, 0.0))), "stable_rank": share(square, largest, 0.0)}


def inside(change: Tensor, rows: Tensor) -> tuple[int, float, float]:
    """(directions that `rows [n, d]` span, share of ‖change‖² along them, that of a random matrix) of `change
    [inputs, d]`, whose rows are what is written per unit of an input."""
    d = change.shape[1]
    gram = rows.double().T @ rows.double()
    values, vectors = torch.linalg.eigh(gram)
    basis = vectors[:, values > RANK**2 * max(float(values[-1]), np.finfo(float).tiny)]
    n = basis.shape[1]
    return n, share(float((change @ basis).square().sum()), float(change.square().sum()), 0.0), n / d


def written_to(dictionary: Dictionary, target: int, circuit: Sequence[np.ndarray | None]) -> Tensor:
    """Decoder rows `[n, d_out]` by which the features of each source layer, None all, write to layer `target`."""
    config = dictionary.config
    found = [
        dictionary.decoder(s, target)[slice(None) if kept is None else torch.from_numpy(kept)]
        for s, kept in enumerate(circuit)
        if target in config.targets(s)
    ]
    return torch.cat(found)


def _writers(subject: Subject, dictionary: Dictionary) -> dict[int, int]:
    """id of a weight → the dictionary's layer whose output it writes: the last linear map of that layer's MLP."""
    if dictionary.config.hookpoint_out != "layers.{}.mlp_out":
        return {}
    return {id(subject.mlp(layer)[1].weight): t for t, layer in enumerate(dictionary.config.layers)}
