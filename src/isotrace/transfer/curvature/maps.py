"""Maps of parameter space: where checkpoints and their fine-tuned ends lie, seen from where they started.

Hidden units can be permuted without changing the function, so that distances between separate pretraining runs mean
nothing: all ends come from one run, or it is said how they were matched.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.transfer.curvature.loss import Block


@dataclass(frozen=True, eq=False)
class ParameterMap:
    """Of R ends: `places [R, k]` on the first principal components with `shares [k]` of the variance, `axes [k, P]` of
    those components in the units of the updates; `scaled [R, k]` by multidimensional scaling of the cosine distances;
    `cosines [R, R]` between updates; `norms [R]` ‖Δθ‖/‖θ₀‖; `block_norms [R, blocks]` the same for every parameter, NaN
    where it was 0. `matched`: how ends of separate runs were brought together, or "" for one run."""

    names: tuple[str, ...]
    places: np.ndarray
    shares: np.ndarray
    axes: Tensor
    scaled: np.ndarray
    cosines: np.ndarray
    norms: np.ndarray
    block_norms: np.ndarray
    matched: str


def parameter_map(
    names: Sequence[str], start: Tensor, ends: Tensor, blocks: Sequence[Block], runs: Sequence[str], *,
    width: int | None = 4_096, seed: int = 0, matched: str = "",
) -> ParameterMap:  # fmt: skip
    """`ends [R, P]` seen from `start [P]`; `runs`: from which pretraining run each comes. Updates are scaled to unit
    norm in every parameter that changed, so that embeddings do not drown the rest, and cosines, components and scaling
    are those of their random projection to `width`, or exact where that is None.

    Raises InputError for ends of several runs unless `matched` says how their units were matched, for fewer than two
    ends, and for one that did not move.
    """
    if len(set(runs)) > 1 and not matched:
        raise InputError(
            f"ends of {len(set(runs))} pretraining runs ({', '.join(sorted(set(runs)))}): their hidden units are "
            "permuted against each other. Map each run by itself, or match the units and say how (matched)."
        )
    if len(ends) < 2 or not len(names) == len(runs) == len(ends):
        raise InputError(
            f"{len(ends)} ends, {len(names)} names and {len(runs)} runs: give two ends or more, and as many."
        )
    updates = ends.double() - start.double()
    if still := [name for name, update in zip(names, updates, strict=True) if not bool(update.any())]:
        raise InputError(f"{still[0]} is where it started: it has no direction. Leave it out.")
    directions = unit_blocks(updates, blocks)
    seen = directions if width is None else projected(directions, width, seed)
    lengths = seen.norm(dim=1, keepdim=True)
    cosines = (seen @ seen.T / (lengths * lengths.T)).clamp(-1, 1).numpy()
    centred = seen - seen.mean(0)
    left, singular, _ = torch.linalg.svd(centred, full_matrices=False)
    kept = min(2, len(ends) - 1)
    squares = singular.square()
    total = float(squares.sum())
    shares = squares[:kept] / total if total > 0 else torch.full((kept,), torch.nan)
    axes = left[:, :kept].T @ (updates - updates.mean(0))
    first = torch.stack([block.of(start.double()).norm() for block in blocks])
    moved = torch.stack([block.of(updates).flatten(1).norm(dim=1) for block in blocks], 1)
    return ParameterMap(
        tuple(names),
        (left[:, :kept] * singular[:kept]).numpy(),
        shares.numpy(),
        axes / axes.norm(dim=1, keepdim=True),
        classical_scaling(1 - cosines, kept),
        cosines,
        (updates.norm(dim=1) / start.double().norm()).numpy(),
        torch.where(first > 0, moved / first, torch.nan).numpy(),
        matched,
    )


def unit_blocks(updates: Tensor, blocks: Sequence[Block]) -> Tensor:
    """`updates [R, P]` with every parameter's part at length 1, or 0 where it did not change."""
    found = updates.clone()
    for block in blocks:
        part = block.of(found).flatten(1)
        length = part.norm(dim=1, keepdim=True)
        found[:, block.start : block.start + block.size] = part / torch.where(length > 0, length, 1)
    return found


def projected(vectors: Tensor, width: int, seed: int, chunk: int = 4_096) -> Tensor:
    """float64 `[R, width]`: `vectors [R, P]` times a Gaussian matrix of variance 1/width, drawn `chunk` rows at a time,
    so that it is the same for any set of vectors and never held whole (Johnson & Lindenstrauss)."""
    if width < 1:
        raise InputError(f"width = {width}: give 1 or more, or None for no projection.")
    generator, total = torch.Generator().manual_seed(seed), torch.zeros(len(vectors), width, dtype=torch.float64)
    for part in vectors.float().split(chunk, 1):
        total += part @ torch.randn(part.shape[1], width, generator=generator)
    return total / width**0.5


def classical_scaling(distances: np.ndarray, k: int) -> np.ndarray:
    """`[R, k]`: places whose distances come closest to `distances [R, R]` in the sense of strain (Torgerson 1952); an
    axis that the distances do not have is 0."""
    n = len(distances)
    centring = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(-0.5 * centring @ distances**2 @ centring)
    return vectors[:, ::-1][:, :k] * np.sqrt(np.maximum(values[::-1][:k], 0))
