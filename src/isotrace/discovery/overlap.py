"""Do two tasks share features, and more of them than chance would have them share?

Chance: circuits with as many parts in every stratum, drawn without regard to each other. A stratum is a layer, or,
where densities are given, the parts of a layer that are about equally often active: circuits prefer frequent features,
and two that do so overlap for that reason alone. The number shared is then a sum of independent hypergeometric
numbers, whose distribution is computed exactly by convolution, so that nothing is drawn.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import scipy.optimize
import scipy.stats
import torch

from isotrace.base.errors import InputError, RunError
from isotrace.base.result import Result
from isotrace.discovery.tasks.basis import Basis, Keep, Statistics
from isotrace.discovery.tasks.task_circuit import TaskCircuit

N_BINS = 20  # strata of a layer, by rank of density


def overlap(circuits: Mapping[str, Keep], basis: Basis, statistics: Statistics | None = None) -> list[dict[str, Any]]:
    """One row per pair of circuits of the same basis, in the order given.

    `shared`, `jaccard`; `expected` and `expected_ci`, mean and 95 % range of the number shared by chance; `p` = P(as
    many or more by chance); `ratio` = shared / expected, `ratio_ci` its exact 95 % interval: a common odds ratio
    over the strata (extended hypergeometric distribution; Mehta, Patel & Gray 1985), put as the number that it would
    make the circuits share; `matched`: layer, or layer and density where `statistics` are given. The ratio is NaN
    where circuits have no layer in common. Raises InputError for indices that the basis does not have.
    """
    for name, keep in circuits.items():
        if len(keep) != len(basis.sizes) or any(
            len(kept.unique()) < len(kept) or (len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < size)
            for kept, size in zip(keep, basis.sizes, strict=True)
        ):
            raise InputError(f"circuit {name!r} is none of this basis: give indices per layer, each once.")
    strata = _strata(basis, statistics)
    sizes = np.bincount(strata, minlength=int(strata.max()) + 1)
    starts = np.concatenate([[0], np.cumsum(basis.sizes)])
    parts = {
        name: np.concatenate([kept.numpy() + start for kept, start in zip(keep, starts[:-1], strict=True)])
        for name, keep in circuits.items()
    }
    rows = []
    for one, other in combinations(parts, 2):
        a, b = parts[one], parts[other]
        shared, union = len(np.intersect1d(a, b)), len(np.union1d(a, b))
        null = _null(sizes, *(np.bincount(strata[part], minlength=len(sizes)) for part in (a, b)))
        rows.append({
            "a": one, "b": other, "n_a": len(a), "n_b": len(b), "shared": shared,
            "jaccard": shared / union if union else float("nan"),
            **_against(shared, null), "matched": "layer" if statistics is None else "layer and density",
        })  # fmt: skip
    return rows


def overlap_with(found: TaskCircuit, folders: Sequence[Path]) -> list[dict[str, Any]]:
    """`overlap` of a circuit and those in run folders of `isotrace circuit`, by layer and density. Raises InputError
    for another folder and for a circuit of another dictionary or mediator."""
    circuits = {found.data.label: found.keep()} | dict(earlier_circuit(folder, found) for folder in folders)
    return overlap(circuits, found.features.basis, found.features.statistics)


def earlier_circuit(folder: Path, found: TaskCircuit) -> tuple[str, Keep]:
    """(name, parts) of the circuit in a run folder. Raises InputError as `overlap_with` does."""
    try:
        earlier = Result.load(folder)
    except RunError as error:
        raise InputError(f"{folder} holds no run of isotrace circuit: give the folder of its --out ({error})") from None
    if earlier.kind != "circuit":
        raise InputError(f"{folder} holds no run of isotrace circuit: give the folder of its --out.")
    if earlier.summary["parts_of"] != found.summary["parts_of"]:
        raise InputError(f"the circuit in {folder} is of another dictionary or mediator: compare circuits of one.")
    rows = earlier.tables["parts"].select("layer", "feature").rows()
    keep = tuple(
        torch.tensor(sorted(f for layer, f in rows if layer == number), dtype=torch.long)
        for number in found.layer_numbers()
    )
    return f"{earlier.summary['task']['label']} ({folder.name})", keep


def _strata(basis: Basis, statistics: Statistics | None) -> np.ndarray:
    """Number of the stratum of every part, layers one after the other."""
    found, first = [], 0
    for layer, size in enumerate(basis.sizes):
        n_bins = 1 if statistics is None else min(N_BINS, size)
        within = np.zeros(size, dtype=np.int64)
        if statistics is not None:
            order = np.argsort(statistics.density[layer].numpy(), kind="stable")
            within[order] = np.arange(size) * n_bins // size
        found.append(first + within)
        first += n_bins
    return np.concatenate(found)


def _null(sizes: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Probability of every number shared, from 0 to the largest possible."""
    total = np.ones(1)
    for n, n_a, n_b in zip(sizes, a, b, strict=True):
        if n_a and n_b:
            shared = np.arange(min(n_a, n_b) + 1)
            total = np.convolve(total, scipy.stats.hypergeom.pmf(shared, n, n_a, n_b))
    return total


def _against(shared: int, null: np.ndarray) -> dict[str, Any]:
    numbers = np.arange(len(null))
    expected = float(null @ numbers)
    low, high = (int(np.searchsorted(null.cumsum(), share - 1e-12)) for share in (0.025, 0.975))
    return {
        "expected": expected, "expected_ci": [low, high], "p": min(1.0, float(null[shared:].sum())),
        "ratio": shared / expected if expected else float("nan"), "ratio_ci": _interval(shared, null, expected),
    }  # fmt: skip


def _interval(shared: int, null: np.ndarray, expected: float) -> list[float]:
    """Under a common log odds ratio λ the number shared has probabilities ∝ null · exp(λ · number)."""
    numbers, possible = np.arange(len(null)), np.flatnonzero(null)
    if not expected:
        return [float("nan"), float("nan")]
    with np.errstate(divide="ignore"):
        logs = np.log(null)

    def tilted(odds: float) -> np.ndarray:
        weights = logs + odds * numbers
        found = np.exp(weights - weights.max())
        return found / found.sum()

    def end(tail: slice, at: int) -> float:
        if shared == possible[at]:  # the tail has probability one whatever the odds
            return shared / expected
        gap = lambda odds: tilted(odds)[tail].sum() - 0.025  # noqa: E731
        return float(tilted(cast(float, scipy.optimize.brentq(gap, -50.0, 50.0))) @ numbers) / expected

    return [end(slice(shared, None), 0), end(slice(shared + 1), -1)]
