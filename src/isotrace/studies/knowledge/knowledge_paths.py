"""Paths through what chemists know, from features to a target and along the edges of circuits: beyond their nulls?

1. graph      molecules, groups, scaffolds, measurements and reaction classes of the bundled tables, or ISOTRACE_TRIPLES
2. features   concepts of molm's features (q < 0.05) to what a probe tells, the blood–brain barrier
3. circuits   concepts at both ends of edges between features of traced circuits of that probe
4. paths      printed only where support is beyond both nulls
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from isotrace.attribution.percolation import network_of
from isotrace.base.settings import expanded
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.saving import load_dictionary
from isotrace.dictionaries.shelf import shelf_of
from isotrace.studies.knowledge.chemical import BARRIER, chemical_graph
from isotrace.studies.knowledge.grounding import Pair, grounded
from isotrace.studies.knowledge.paths import Graph
from isotrace.studies.network import DICTIONARY, SUBJECT, molecules, traced_circuit
from isotrace.studies.study import Line, Outcome, Plot, Setting, study
from isotrace.subjects.subject import Subject, load_subject

Row = dict[str, Any]
TARGET = "probe:bbb"
SIZES = {True: (150, 3, 5), False: (1_000, 30, 20)}
"""quick → molecules of a table in the graph, traced molecules, draws of each null."""
SHOWN = 20
"""Pairs whose paths are printed."""


def named_concepts(known: pl.DataFrame) -> dict[tuple[int, int], str]:
    """(layer, feature) → concept, of those that pass."""
    rows = known.filter(pl.col("q") < 0.05).select("layer", "feature", "concept").iter_rows()
    return {(layer, feature): concept for layer, feature, concept in rows}


def circuit_pairs(
    subject: Subject, dictionary: Dictionary, smiles: str, names: dict[tuple[int, int], str]
) -> list[Pair]:
    """Concepts at the ends of every edge between two features of the circuit, as `isotrace trace` finds it."""
    found = traced_circuit(subject, dictionary, smiles, TARGET)
    network = network_of(found.graph, found.pruned)
    concept = [
        names.get((int(layer), int(feature)))
        for layer, _, feature in found.graph.feature_nodes[network.nodes[: network.n_features]].tolist()
    ]
    pairs = []
    for source, target in zip(network.sources.tolist(), network.targets.tolist(), strict=True):
        if max(source, target) < network.n_features:
            a, b = concept[source], concept[target]
            if a is not None and b is not None and a != b:
                pairs.append((a, b))
    return pairs


def verdict(rows: Sequence[Row], graph: Graph, whose: str) -> list[str]:
    said = "; ".join(
        f"{row['of']}: support {row['support']:.2f}, equal degree {row['equal_degree_support']:.2f}, rewired "
        f"{row['rewired_support']:.2f}"
        for row in rows
    )
    told = [row["of"] for row in rows if row["told"]]
    first = (
        f"Paths join {' and '.join(told)} beyond both nulls" if told
        else "Paths of at most three relations ground nothing here: concepts of equal degree, or a graph whose "
        "relations were dealt anew, are joined as often, so that no path is printed"
    )  # fmt: skip
    return [
        f"{first} ({said}).",
        f"The graph, {whose}, has {len(graph.beside):,} nodes and {len(graph.triples):,} triples. A path is no cause; "
        "the circuit's interventions are.",
    ]


@study("knowledge_paths", "paths through what chemists know: do they join what molm's features join?")
def knowledge_paths(setting: Setting) -> Outcome:
    """ISOTRACE_TRIPLES: a file of head, relation and tail between tabs, in place of the bundled graph."""
    n, n_traced, n_nulls = SIZES[setting.quick]
    given = os.environ.get("ISOTRACE_TRIPLES")
    graph = Graph.read(expanded(given)) if given else chemical_graph(n, setting.seed)
    subject = load_subject(SUBJECT)
    dictionary = load_dictionary(DICTIONARY, subject)
    names = named_concepts(shelf_of(dictionary).tables.features)
    concepts = sorted({*names.values()} & {*graph.beside})
    of_features = [(name, BARRIER) for name in names.values() if name in graph.beside and BARRIER in graph.beside]
    traced = molecules(subject, n_traced, setting.seed)
    of_edges = [
        pair for smiles in setting.progress(traced, "tracing circuits")
        for pair in circuit_pairs(subject, dictionary, smiles, names) if {*pair} <= {*graph.beside}
    ]  # fmt: skip
    cases = {"features and the barrier": of_features, "edges of circuits": of_edges}
    rows, chains = [], []
    for name, pairs in setting.progress(list(cases.items()), "paths and nulls"):
        if len(pairs) < 2:
            continue
        options = {"n_nulls": n_nulls, "seed": setting.seed, "fixed": frozenset({BARRIER})}
        row = {"of": name} | grounded(graph, pairs, concepts, **options)
        rows.append(row)
        if row["told"]:
            chains += [
                {"of": name, "from": a, "to": b, "path": path.told(), "cost": path.cost,
                 "specificity": path.specificity, "origins": ", ".join(sorted({t.origin for t in path.triples}))}
                for a, b in sorted({*pairs})[:SHOWN] for path in graph.paths(a, b)
            ]  # fmt: skip
    tables = {"support": rows} | ({"paths": chains} if chains else {})
    whose = "your triples" if given else "of the bundled tables"
    return Outcome(tables, tuple(verdict(rows, graph, whose)), (plot(rows),))


def plot(rows: Sequence[Row]) -> Plot:
    places = np.arange(1, len(rows) + 1, dtype=float).tolist()
    ends = [row["support_ci"] for row in rows]
    lines = (
        Line("support", places, [row["support"] for row in rows], [e[0] for e in ends], [e[1] for e in ends], True),
        Line("concepts of equal degree", places, [row["equal_degree_support"] for row in rows], dots=True),
        Line("rewired graph", places, [row["rewired_support"] for row in rows], dots=True),
    )
    said = ", ".join(f"{place:g}: {row['of']}" for place, row in zip(places, rows, strict=True))
    return Plot("share of pairs joined by a path", "case", "support", lines, said)
