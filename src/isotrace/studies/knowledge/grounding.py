"""Do paths of a knowledge graph join what a model joins, more than they join anything else?

    support   share of pairs (concept, concept or target) with a path of at most three relations
    cost      of the cheapest path, mean over the pairs that have one in the graph and in its null

Nulls: the same pairs with every concept replaced by another of about its degree, and the same pairs in graphs whose
relations were dealt anew at equal degrees. What a null reaches is not shown as a path: it explains nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from isotrace.stats.bootstrap import mean_interval
from isotrace.studies.knowledge.paths import Graph

Pair = tuple[str, str]
Row = dict[str, Any]
NEAREST = 10
"""Nodes nearest in degree, of which one stands for a concept in the null."""


def costs(graph: Graph, pairs: Sequence[Pair]) -> np.ndarray:
    """float64 `[pairs]`: of the cheapest path, infinite where there is none."""
    from_start = {start: graph.cheapest(start) for start in {a for a, _ in pairs}}
    return np.asarray([from_start[a].get(b, np.inf) for a, b in pairs], dtype=np.float64)


def substitutes(graph: Graph, names: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
    """Name → another of `names`, one of the NEAREST in degree."""
    mixed: list[str] = [names[int(i)] for i in rng.permutation(len(names))]  # names of one degree stand in no order
    order = sorted(mixed, key=lambda name: graph.degree.get(name, 0))
    found = {}
    for place, name in enumerate(order):
        first = max(0, min(place - NEAREST // 2, len(order) - NEAREST - 1))
        others = [other for other in order[first : first + NEAREST + 1] if other != name]
        found[name] = others[int(rng.integers(len(others)))] if others else name
    return found


def grounded(
    graph: Graph, pairs: Sequence[Pair], concepts: Sequence[str], *, n_nulls: int, seed: int, fixed: frozenset[str]
) -> Row:
    """`concepts`: what a null may take instead; `fixed`: names that stay, as that of a target. `beyond`: support less
    that of either null, with an interval over pairs; `told`: whether both are above 0."""
    rng = np.random.default_rng((seed, 11))
    own = costs(graph, pairs)
    nulls: dict[str, list[np.ndarray]] = {"equal degree": [], "rewired": []}
    for _ in range(n_nulls):
        of = substitutes(graph, concepts, rng) | {name: name for name in fixed}
        nulls["equal degree"].append(costs(graph, [(of.get(a, a), of.get(b, b)) for a, b in pairs]))
        nulls["rewired"].append(costs(graph.rewired(rng), pairs))
    support = np.isfinite(own)
    row: Row = {"pairs": len(pairs), "support": float(support.mean()), "support_ci": mean_interval(support * 1.0, seed)}
    told = True
    for name, drawn in nulls.items():
        key, table = name.replace(" ", "_"), np.stack(drawn)
        beyond = support - np.isfinite(table).mean(0)
        known = support & np.isfinite(table).any(0)  # joined here, and in one of the draws
        drawn_costs = np.where(np.isfinite(table), table, np.nan)[:, known]
        saved = np.nanmean(drawn_costs, 0) - own[known]
        ends = mean_interval(beyond, seed)
        row |= {f"{key}_support": float(np.isfinite(table).mean()), f"beyond_{key}": float(beyond.mean()),
                f"beyond_{key}_ci": ends, f"cheaper_than_{key}": float(saved.mean()) if len(saved) else np.nan,
                f"cheaper_than_{key}_ci": mean_interval(saved, seed)}  # fmt: skip
        told &= ends[0] > 0
    return row | {"told": told}
