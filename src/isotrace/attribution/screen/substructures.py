"""Substructures: the parts of a sequence that practitioners have a word for, and what they do over many sequences."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from isotrace.domains.domain import Domain, Reading
from isotrace.stats.bootstrap import mean_interval

LEAST = 5
"""Molecules below which a mean over them has no interval."""


@dataclass(frozen=True)
class Found:
    """A substructure in a molecule: `at`, the positions of its tokens; `effect`, by how much the target falls when it
    is hidden; `random`, the same of as many random atom tokens of the molecule (NaN where it has no others)."""

    name: str
    at: tuple[int, ...]
    effect: float
    random: float


def substructures(domain: Domain, reading: Reading) -> list[tuple[str, tuple[int, ...]]]:
    """(name, tokens) of every part of the sequence that practitioners have a word for."""
    concepts, kept = domain.concepts, []
    for i, tokens in domain.label(reading).instances:
        if concepts[i].name in domain.substructures:
            kept.append((concepts[i].name, tokens))
    return kept


def over_molecules(found: Iterable[Iterable[Found]], seed: int = 0) -> list[dict[str, Any]]:
    """One row per substructure, those of most molecules first: its mean effect, averaged first within a molecule,
    beside that of as many random atoms of the same molecules, and their difference, with 95 % intervals over molecules
    (None for fewer than LEAST)."""
    by_name: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for one in found:
        own: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for part in one:
            own[part.name].append((part.effect, part.random))
        for name, pairs in own.items():
            by_name[name].append(tuple(np.mean(pairs, 0)))  # pyright: ignore[reportArgumentType]
    rows = []
    for name, pairs in by_name.items():
        effects, random = np.asarray(pairs).T
        both = np.isfinite(random)
        row: dict[str, Any] = {"substructure": name, "molecules": len(effects)}
        for key, values in (("effect", effects), ("random", random[both]), ("beyond", (effects - random)[both])):
            row[key] = float(values.mean()) if len(values) else None
            row[f"{key}_ci"] = list(mean_interval(values, seed)) if len(values) >= LEAST else None
        rows.append(row)
    return sorted(rows, key=lambda row: (-row["molecules"], row["substructure"]))
