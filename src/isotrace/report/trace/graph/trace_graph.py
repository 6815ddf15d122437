"""The graph of a trace for its page and its run folder: edges, supernodes, tables."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import polars as pl
import torch

from isotrace.attribution.graph import normalise
from isotrace.attribution.influence import influence
from isotrace.attribution.supernodes import (
    SupernodeConfig,
    Supernodes,
    activation_profiles,
    find_supernodes,
    merged,
)
from isotrace.base.runs import to_jsonable

if TYPE_CHECKING:
    from isotrace.report.trace.record import Record

EDGES, PER_NODE = 100_000, 3
"""Edges on the page: the most influential ones, and at least so many into and out of every node."""


def supernodes_of(trace: "Record") -> Supernodes:
    """Those given, where there are, and automatic ones of the features they do not name. The features of the circuit
    come in the order of their influence, their activations from this input."""
    keys = list(dict.fromkeys((f["layer"], f["feature"]) for f in trace.features))
    concepts = [trace.rows.get(key, {}).get("concept") for key in keys]
    config, framed = SupernodeConfig(seed=trace.traced.config.seed), trace.traced.frame
    automatic = find_supernodes(config, keys, concepts, framed.dictionary, activation_profiles(framed, keys))
    return merged(trace.given, automatic) if trace.given else automatic


def page_supernodes(trace: "Record", nodes: list[int]) -> dict[str, Any]:
    """`file`: what `supernodes.json` holds; `members`: per group, the places in `nodes` of its feature nodes."""
    found, members = trace.supernodes, [[] for _ in trace.supernodes.groups]
    groups, graph = found.group_of(), trace.traced.graph
    for place, node in enumerate(nodes):
        if node < graph.n_features:
            layer, _, feature = graph.feature_nodes[node].tolist()
            members[groups[layer, feature]].append(place)
    return {"file": to_jsonable(found), "members": members}


def page_edges(trace: "Record") -> list[dict[str, Any]]:
    """The most influential edges of the pruned graph, and of every node its strongest ones, so that no node that
    was kept looks unconnected. `influence` = normalised weight × influence of the edge's target."""
    traced = trace.traced
    matrix = torch.where(traced.pruned.edges, traced.graph.matrix, torch.zeros_like(traced.graph.matrix))
    weight = influence(matrix, traced.graph.target)
    weight[traced.graph.target] = 1
    scores = normalise(matrix.double()) * weight[:, None]
    rows, columns = torch.nonzero(traced.pruned.edges, as_tuple=True)
    ranked = scores[rows, columns].argsort(descending=True)
    seen: Counter[int] = Counter()
    chosen = []
    for place, index in enumerate(ranked.tolist()):
        ends = int(rows[index]), int(columns[index])
        if place < EDGES or min(seen[ends[0]], seen[~ends[1]]) < PER_NODE:
            chosen.append(index)
            seen[ends[0]] += 1  # as target
            seen[~ends[1]] += 1  # as source
    names = {n: trace.node_id(n) for n in torch.cat([rows, columns]).unique().tolist()}
    return [
        {
            "source": names[int(columns[i])],
            "target": names[int(rows[i])],
            "weight": float(matrix[rows[i], columns[i]]),
            "influence": float(scores[rows[i], columns[i]]),
        }
        for i in chosen
    ]


def edge_frame(trace: "Record") -> pl.DataFrame:
    """The edges of the pruned graph, one row each."""
    rows, columns = torch.nonzero(trace.traced.pruned.edges, as_tuple=True)
    return pl.DataFrame(
        {
            "source": [trace.node_id(n) for n in columns.tolist()],
            "target": [trace.node_id(n) for n in rows.tolist()],
            "weight": trace.traced.graph.matrix[rows, columns].numpy(),
        }
    )


def intervention_frame(trace: "Record") -> pl.DataFrame:
    nodes = trace.traced.nodes
    names = ("predicted", "first_order", "graph", "frozen", "free_running", "exact")
    ids = [trace.node_id(n) for n in nodes.nodes.tolist()]
    return pl.DataFrame({"node": ids} | {name: getattr(nodes, name).numpy() for name in names})


def control_frame(trace: "Record") -> pl.DataFrame:
    circuit = trace.traced.circuit_effects
    return pl.DataFrame({"value": circuit.control_values, "removed": circuit.control_removed})
