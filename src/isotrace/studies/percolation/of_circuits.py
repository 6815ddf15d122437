"""Functions in traced circuits: which features of a circuit depend on which of its first ones, by intervention.

Inputs are up to K features of the circuit that no other feature of it leads to, those that write most to the rest.
Every pattern of them is switched off in the free-running subject, each at its own token; a node's state is whether its
feature is active then. Nothing is frozen, so that attention and all that the dictionary does not explain go along.
Null: as many active features of the same layers, which are not in the circuit, at their own tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import shortest_path

from isotrace.attribution.percolation import Network, network_of
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.interventions import Intervention, Nodes, Plan, Set
from isotrace.stats.bootstrap import mean_interval
from isotrace.steering.states import flowing
from isotrace.studies.network import traced_circuit
from isotrace.studies.percolation.observables import depends, functions, is_or
from isotrace.subjects.subject import Batch, Subject

Row = dict[str, Any]
Node = tuple[int, int, int]
K = 5
FAR = 4
"""Steps: nodes as far or further are one class."""
NULLS = 3


@dataclass(frozen=True, eq=False)
class Circuit:
    """`nodes`: (layer, position, feature) of its features; `ways [n, n]`: |weight| of edges from row to column;
    `others`: active features that are not in it, by layer."""

    batch: Batch
    nodes: list[Node]
    ways: csr_array
    others: dict[int, list[Node]]

    def inputs(self) -> list[int]:
        """Places in `nodes`."""
        into, out = np.asarray(self.ways.sum(0)), np.asarray(self.ways.sum(1))
        first = np.flatnonzero((into == 0) & (out > 0))
        return first[np.argsort(-out[first], kind="stable")][:K].tolist()


def circuit_of(subject: Subject, dictionary: Dictionary, smiles: str, target: str) -> Circuit:
    """As `isotrace trace` finds it."""
    found = traced_circuit(subject, dictionary, smiles, target)
    network = network_of(found.graph, found.pruned)
    every = [(int(a), int(b), int(c)) for a, b, c in found.graph.feature_nodes.tolist()]
    nodes = [every[i] for i in network.nodes[: network.n_features]]
    others: dict[int, list[Node]] = {}
    for node in every:
        if node not in {*nodes}:
            others.setdefault(node[0], []).append(node)
    return Circuit(found.batch, nodes, between_features(network), others)


def between_features(network: Network) -> csr_array:
    n = network.n_features
    inside = (network.sources < n) & (network.targets < n)
    ends = network.sources[inside], network.targets[inside]
    return csr_array((network.weights[inside], ends), shape=(n, n))


def truth_table(
    subject: Subject, dictionary: Dictionary, batch: Batch, inputs: Sequence[Node], nodes: Sequence[Node]
) -> np.ndarray:
    """bool `[nodes, 2^k]`: whether a node's feature is active; column p has input i on where bit i of p is, as in
    `spread.all_patterns`."""
    components, layers = Features(dictionary), range(dictionary.config.n_layers)
    place = {number: slot for slot, number in enumerate(dictionary.config.layers)}
    table = np.zeros((len(nodes), 2 ** len(inputs)), dtype=bool)
    for pattern in range(table.shape[1]):
        off = tuple(node for i, node in enumerate(inputs) if not (pattern >> i) & 1)
        plan = Plan.of(Intervention(components, Set(0.0), Nodes(off))) if off else Plan()
        seen = flowing(subject, components, layers, batch, plan)
        table[:, pattern] = [bool(seen[place[layer]][0, at, feature] > 0) for layer, at, feature in nodes]
    return table


def circuit_rows(
    subject: Subject, dictionary: Dictionary, smiles: str, target: str, seed: int
) -> tuple[Row, list[Row]] | None:
    """(the circuit, a row for every distance), None of a circuit without two inputs or any other node."""
    found = circuit_of(subject, dictionary, smiles, target)
    places = found.inputs()
    rest = [i for i in range(len(found.nodes)) if i not in places]
    if len(places) < 2 or not rest:
        return None
    nodes, inputs = [found.nodes[i] for i in rest], [found.nodes[i] for i in places]
    table = truth_table(subject, dictionary, found.batch, inputs, nodes)
    depend = depends(table)  # [nodes, k]
    rng, drawn = np.random.default_rng((seed, 13)), []
    for _ in range(NULLS):
        pools = [found.others.get(layer, []) for layer, *_ in inputs]
        if all(pools):
            random = [pool[int(rng.integers(len(pool)))] for pool in pools]
            if len({*random}) == len(random):
                drawn.append(depends(truth_table(subject, dictionary, found.batch, random, nodes)).sum(1).mean())
    steps = shortest_path(found.ways > 0, unweighted=True, indices=places)[:, rest].T
    some = depend.any(1)
    row = {
        "smiles": smiles, "inputs": len(inputs), "nodes": len(nodes), "complexity": float(depend.sum(1).mean()),
        "complexity_random_inputs": float(np.mean(drawn)) if drawn else np.nan,
        "functions": len(functions(table)[0]), "or_share": float(is_or(table)[some].mean()) if some.any() else np.nan,
    }  # fmt: skip
    far = np.where(np.isinf(steps), -1, np.minimum(steps, FAR))
    rows = [
        {"distance": int(at), "pairs": int((far == at).sum()), "depends": float(depend[far == at].mean())}
        for at in np.unique(far)
    ]  # fmt: skip
    return row, rows


def summarised(found: Sequence[tuple[Row, list[Row]]], seed: int) -> tuple[list[Row], list[Row]]:
    """(means over circuits with intervals, share of dependent pairs by steps in the graph)."""
    summary: Row = {"circuits": len(found)}
    for name in ("inputs", "nodes", "complexity", "complexity_random_inputs", "functions", "or_share"):
        values = np.asarray([row[name] for row, _ in found], dtype=np.float64)
        values = values[np.isfinite(values)]
        summary |= {name: float(values.mean()) if len(values) else np.nan, f"{name}_ci": mean_interval(values, seed)}
    table = []
    every = [row for _, rows in found for row in rows]
    for at in sorted({row["distance"] for row in every}, key=lambda d: d if d > 0 else FAR + 1):
        values = np.asarray([row["depends"] for row in every if row["distance"] == at])
        name = "no path" if at < 0 else f"{at} or more" if at == FAR else str(at)
        table.append({"distance": name, "pairs": sum(row["pairs"] for row in every if row["distance"] == at),
                      "depends": float(values.mean()), "depends_ci": mean_interval(values, seed)})  # fmt: skip
    return [summary], table
