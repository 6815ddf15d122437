"""Functional percolation on random graphs: what is published as a transition of function is that of connection.

1. grid        complexity, entropy, functions and giant component over mean degree, beside their closed forms
2. distance    transfer entropy from an input to a node, by the steps between them, beside inputs of other patterns
3. map         mean degree and threshold: do cascades from one node reach a share of the graph where theory says so
4. where more could happen: larger inputs, mixed thresholds, inverting nodes
5. circuits    the same of traced circuits of molm: features of a circuit against the first of them, by intervention
6. front       graphs that no other exceeds in both complexity and number of functions
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isotrace.dictionaries.saving import load_dictionary
from isotrace.stats.bootstrap import mean_interval
from isotrace.studies.network import DICTIONARY, SUBJECT, TARGETS, molecules
from isotrace.studies.percolation.observables import (
    cascades_possible,
    closed_forms,
    coin,
    components,
    depends,
    distances,
    front,
    functions,
    hypervolume,
    is_or,
    transfer_entropy,
    tree_depth,
)
from isotrace.studies.percolation.of_circuits import circuit_rows, summarised
from isotrace.studies.percolation.spread import Spread, all_patterns, random_graph, spread
from isotrace.studies.percolation.telling import PHI, REACHED, K, plots, verdict
from isotrace.studies.study import Outcome, Setting, study
from isotrace.subjects.subject import load_subject

Row = dict[str, Any]
MEASURED = ("giant", "susceptibility", "complexity", "depth", "entropy", "functions", "or_share", "cascade")
FAR = 10
"""Steps: nodes as far or further are one class."""
DRAWS = 1_000


@dataclass(frozen=True)
class Sizes:
    """n: nodes. degrees: z. n_graphs: of each. n_entropy: of them transfer entropy is taken of. small: nodes of the
    graphs of the map, n_map of them a point, `starts` single nodes each. n_traced: molecules."""

    n: int
    degrees: tuple[float, ...]
    n_graphs: int
    n_entropy: int
    small: int
    n_map: int
    starts: int
    n_traced: int


QUICK = Sizes(10_000, tuple(np.round(np.arange(0, 4.01, 0.2), 1).tolist()), 20, 2, 2_000, 5, 32, 6)
FULL = Sizes(10_000, tuple(np.round(np.arange(0, 4.01, 0.1), 1).tolist()), 100, 20, 10_000, 20, 64, 60)
MAP_DEGREES, MAP_PHI = (0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 9.0), (0.08, 0.12, 0.15, 0.18, 0.22, 0.26, 0.3)
VARIANTS = {
    "inputs of one node, φ 0.1": {},
    "inputs of one node, φ 0.3": {"phi": 0.3},
    "inputs of 1 % of the nodes each, φ 0.3": {"phi": 0.3, "share": 0.01},
    "half of the nodes φ 0.1, half 0.4": {"mixed": 0.4},
    "a tenth of the nodes inverting": {"inverting": 0.1},
    "three tenths inverting": {"inverting": 0.3},
}


def graph_row(n: int, degree: float, rng: np.random.Generator, **variant: float) -> tuple[Row, Spread, Any, np.ndarray]:
    """What is measured of one graph, its spread, the graph, and the nodes of its inputs."""
    graph = random_graph(n, degree, rng)
    size = max(1, round(variant.get("share", 0.0) * n))
    inputs = [np.arange(i * size, (i + 1) * size) for i in range(K)]
    clamped, start = all_patterns(inputs, n)
    phi: Any = variant.get("phi", PHI)
    if "mixed" in variant:
        phi = np.where(rng.random(n) < 0.5, PHI, variant["mixed"])
    inverting = rng.random(n) < variant["inverting"] if "inverting" in variant else None
    found = spread(graph, clamped, start, phi, inverting)
    others = found.table[len(clamped) :]
    kinds, which = functions(found.table)
    depth = np.asarray([tree_depth(function) for function in kinds])[which[len(clamped) :]]
    giant, susceptibility = components(graph)
    row = {
        "giant": giant,
        "susceptibility": susceptibility,
        "complexity": float(depends(others).sum(1).mean()),
        "depth": float(depth.mean()),
        "entropy": float(coin(others.mean(1)).mean()),
        "functions": len(kinds),
        "or_share": float(is_or(others).mean()),
        "cascade": float(others[:, -1].mean()),
        "settled": float(found.settled.mean()),
    }
    return row, found, graph, clamped


def grid(sizes: Sizes, setting: Setting) -> tuple[list[Row], dict[float, np.ndarray], list[Row]]:
    """(rows by mean degree, (complexity, functions) of its graphs, rows of transfer entropy by distance)."""
    rows, points, by_distance = [], {}, []
    for i, z in enumerate(setting.progress(sizes.degrees, "mean degrees")):
        found = []
        for number in range(sizes.n_graphs):
            rng = np.random.default_rng((setting.seed, i, number))
            row, spreading, graph, clamped = graph_row(sizes.n, z, rng)
            found.append(row)
            if number < sizes.n_entropy:
                by_distance += entropy_rows(z, spreading, distances(graph, clamped), rng)
        points[z] = np.asarray([(row["complexity"], row["functions"]) for row in found])
        closed = closed_forms(z, K)
        row = {"degree": z, "graphs": len(found)}
        for name in MEASURED:
            values = np.asarray([one[name] for one in found], dtype=np.float64)
            row |= {name: values.mean(), f"{name}_ci": mean_interval(values, setting.seed)}
            if name in closed:
                row[f"{name}_closed"] = closed[name]
        row |= _hypervolume(points[z], setting.seed)
        rows.append(row)
    return rows, points, by_distance


def _hypervolume(points: np.ndarray, seed: int) -> Row:
    rng = np.random.default_rng((seed, 7))
    drawn = [hypervolume(points[rng.integers(0, len(points), len(points))]) for _ in range(DRAWS)]
    return {"hypervolume": hypervolume(points), "hypervolume_ci": np.quantile(drawn, [0.025, 0.975]).tolist()}


def entropy_rows(degree: float, found: Spread, steps: np.ndarray, rng: np.random.Generator) -> list[Row]:
    """Of one graph, a row for every input and distance: mean bits to the nodes there, beside those of the same input in
    patterns that were dealt anew. `steps [inputs, n]`."""
    rows, n_inputs = [], len(steps)
    places = np.arange(found.table.shape[1])
    for i in range(n_inputs):
        bits = (places >> i) & 1 == 1
        own, null = (transfer_entropy(found.states, given) for given in (bits, rng.permutation(bits)))
        far = np.where(np.isinf(steps[i]), -1, np.minimum(steps[i], FAR))
        far[:n_inputs] = 0
        rows += [
            {"degree": degree, "distance": int(at), "nodes": int((far == at).sum()),
             "bits": float(own[far == at].mean()), "null": float(null[far == at].mean())}
            for at in np.unique(far) if at != 0
        ]  # fmt: skip
    return rows


def distance_table(rows: Sequence[Row], seed: int) -> list[Row]:
    """Over degrees of 1 and more: mean over (graph, input), of which every one counts alike."""
    table = []
    for at in sorted({row["distance"] for row in rows}, key=lambda d: d if d > 0 else FAR + 1):
        here = [row for row in rows if row["distance"] == at and row["degree"] >= 1]
        if here:
            own, null = (np.asarray([row[name] for row in here]) for name in ("bits", "null"))
            name = "not connected" if at < 0 else f"{at} or more" if at == FAR else str(at)
            table.append({"distance": name, "pairs": sum(row["nodes"] for row in here),
                          "bits": own.mean(), "bits_ci": mean_interval(own, seed),
                          "null": null.mean(), "null_ci": mean_interval(null, seed)})  # fmt: skip
    return table


def cascade_map(sizes: Sizes, setting: Setting) -> list[Row]:
    """Share of single nodes from which more than REACHED of the graph turns on, over (z, φ)."""
    rows = []
    for z in setting.progress(MAP_DEGREES, "map of cascades"):
        for number in range(sizes.n_map):
            rng = np.random.default_rng((setting.seed, 3, number))
            graph = random_graph(sizes.small, z, rng)
            start = np.zeros((sizes.small, sizes.starts), dtype=bool)
            start[rng.choice(sizes.small, sizes.starts, replace=False), np.arange(sizes.starts)] = True
            for phi in MAP_PHI:
                size = spread(graph, np.empty(0, np.int64), start, phi).table.mean(0)
                rows.append({"degree": z, "phi": phi, "share": float((size > REACHED).mean())})
    table = []
    for z, phi in dict.fromkeys((row["degree"], row["phi"]) for row in rows):
        values = np.asarray([row["share"] for row in rows if (row["degree"], row["phi"]) == (z, phi)])
        table.append({"degree": z, "phi": phi, "possible": cascades_possible(z, phi), "share": values.mean(),
                      "share_ci": mean_interval(values, setting.seed)})  # fmt: skip
    return table


def variants(sizes: Sizes, setting: Setting) -> list[Row]:
    rows = []
    for name, variant in setting.progress(VARIANTS.items(), "variants"):
        for z in (2.0, 4.0):
            found = []
            for number in range(min(sizes.n_graphs, 20)):
                rng = np.random.default_rng((setting.seed, 4, number))
                found.append(graph_row(sizes.small, z, rng, **variant)[0])
            row: Row = {"variant": name, "degree": z, "graphs": len(found)}
            for key in ("complexity", "depth", "entropy", "functions", "or_share", "settled"):
                values = np.asarray([one[key] for one in found], dtype=np.float64)
                row |= {key: values.mean(), f"{key}_ci": mean_interval(values, setting.seed)}
            rows.append(row)
    return rows


def traced(sizes: Sizes, setting: Setting) -> tuple[list[Row], list[Row]]:
    """See `of_circuits.summarised`."""
    subject = load_subject(SUBJECT)
    dictionary = load_dictionary(DICTIONARY, subject)
    texts = molecules(subject, sizes.n_traced, setting.seed)
    found = [
        circuit_rows(subject, dictionary, text, TARGETS[0], setting.seed)
        for text in setting.progress(texts, "circuits")
    ]
    return summarised([one for one in found if one is not None], setting.seed)


@study("functional_percolation", "spreading activity on random graphs: what of it is more than connection")
def functional_percolation(setting: Setting) -> Outcome:
    """METHODS_DYNAMICS §1 on random graphs: N = 10,000, k = 5 inputs, φ = 0.1."""
    sizes = QUICK if setting.quick else FULL
    rows, points, by_distance = grid(sizes, setting)
    far, map_, more = distance_table(by_distance, setting.seed), cascade_map(sizes, setting), variants(sizes, setting)
    circuits, steps = traced(sizes, setting)
    pooled = np.concatenate([*points.values()])
    best = np.unique(front(pooled), axis=0)
    tables = {"degrees": rows, "distance": far, "cascades": map_, "variants": more,
              "circuits": circuits, "circuit_distance": steps,
              "front": [{"complexity": x, "functions": y} for x, y in best.tolist()]}  # fmt: skip
    return Outcome(tables, tuple(verdict(rows, map_, more, circuits[0], steps)), plots(rows, far, map_, best, pooled))
