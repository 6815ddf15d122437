"""Which circuit reproduces a prediction? Of a set of every size of a grid, the smallest from which on the target stays
within a tolerance of the model's; else the nearest. Nothing here looks at a control."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isotrace.attribution.ablation import Ablation, Nodes, ablated, feature_values
from isotrace.attribution.circuits.search import CIRCUITS, Search
from isotrace.attribution.graph import Frame
from isotrace.dictionaries.features import Features
from isotrace.subjects.subject import Subject
from isotrace.subjects.targets import Target


@dataclass(frozen=True)
class Choice:
    """`circuit [n, 3]`; `sizes` of the grid, ascending, and the target with the circuit of each size alone."""

    circuit: Nodes
    sizes: tuple[int, ...]
    values: np.ndarray


def choose_circuit(
    subject: Subject,
    frame: Frame,
    target: Target,
    candidates: Nodes,
    *,
    shares: Sequence[float],
    tolerance: float,
    ablation: Ablation,
    way: str = "effects",
    seed: int = 0,
    known: dict[str, Any] | None = None,
) -> Choice:
    """`way`: one of `CIRCUITS`. `shares`: sizes as shares of all active features; `tolerance`: as a share of
    |M(full) − M(∅)|. `known`: see `Search`."""
    n_active = int((frame.active.values > 0).sum())
    sizes = sorted({min(len(candidates), max(1, round(s * n_active))) for s in shares})
    arguments = (subject, Features(frame.dictionary), feature_values(frame.dictionary, ablation), frame.batch, target)
    sets = CIRCUITS[way](Search(*arguments, candidates, seed, {} if known is None else known), sizes)
    values = ablated(*arguments, [candidates[:0], *sets], complement=True).double().numpy()
    full = float(target.value(subject, frame.batch, frame.frozen.actual.final))
    errors = np.abs(values[1:] - full)
    within = errors <= tolerance * abs(values[0] - full)
    lasting = np.logical_and.accumulate(within[::-1])[::-1]
    place = int(lasting.argmax()) if lasting.any() else int(errors.argmin())
    return Choice(sets[place], tuple(sizes), values[1:])
