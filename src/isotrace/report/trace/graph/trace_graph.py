"""The graph of a trace for its page and its run folder: edges, supernodes, tables."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from torch import Tensor

from isotrace.attribution.graph import normalise
from isotrace.attribution.influence import blocks_of, influence
from isotrace.attribution.supernodes import (
    Supernode,
    SupernodeConfig,
    Supernodes,
    activation_profiles,
    find_supernodes,
    merged,
)
from isotrace.base.runs import to_jsonable
from isotrace.report.trace.graph.kinds import node_kind

if TYPE_CHECKING:
    from isotrace.report.trace.record import Record

EDGES, PER_NODE = 30_000, 3
"""Edges on the page and in graph.json, while edges.parquet has all: the most influential, and at least so many into and
out of every node."""
OUTSIDE = "syntax"


def supernodes_of(trace: "Record") -> Supernodes:
    """Those given, where there are, and automatic ones of the features they do not name: features whose name is syntax
    in one group, the others by what they are about. The features of the circuit come in the order of their influence,
    their activations from this input."""
    keys = list(dict.fromkeys((f["layer"], f["feature"]) for f in trace.features))
    config, framed = SupernodeConfig(seed=trace.traced.config.seed), trace.traced.frame
    rows = {key: trace.rows.get(key, {}) for key in keys}
    named = {key: row["concept"] for key, row in rows.items() if trace.tables.named(row)}
    written = [key for key in keys if named.get(key) in trace.traced.domain.syntax]
    about = [key for key in keys if key not in written]
    profiles = activation_profiles(framed, about)
    concepts = [named.get(key) for key in about]
    found = find_supernodes(config, about, concepts, framed.dictionary, profiles, _places(trace, profiles))
    if written:
        found = replace(found, groups=(*found.groups, Supernode("syntax", tuple(written))))
    return merged(trace.given, found) if trace.given else found


def _places(trace: "Record", profiles: torch.Tensor) -> list[str]:
    """The group of elements, or `OUTSIDE`, at whose tokens each feature is most active in sum."""
    at = [_group(trace, position) for position in range(trace.traced.graph.n_tokens)]
    names = list(dict.fromkeys(at))
    sums = torch.stack([profiles[:, [one == name for one in at]].sum(1) for name in names])
    return [names[place] for place in sums.argmax(0).tolist()]


def _group(trace: "Record", position: int) -> str:
    """What a token belongs to: the group of its first element."""
    written, several = trace.traced.reading.elements[position], f"{trace.traced.domain.element}s"
    if not written:
        return OUTSIDE
    return next((g.name for g in trace.traced.groups if written[0] in g.elements), several)


def page_supernodes(trace: "Record", nodes: list[int]) -> dict[str, Any]:
    """`file`: what `supernodes.json` holds; `members`: per group, the places in `nodes` of its feature nodes, without
    those that are about syntax. `folds`: what else is one node there, with its places: all syntax, and the tokens of
    each group of elements."""
    found, members = trace.supernodes, [[] for _ in trace.supernodes.groups]
    groups, graph = found.group_of(), trace.traced.graph
    folds: dict[tuple[str, str], list[int]] = {}
    for place, node in enumerate(nodes):
        kind = graph.kind_of(node)
        if kind == "feature" and node_kind(trace, node) == "syntax":
            folds.setdefault(("syntax", "syntax"), []).append(place)
        elif kind == "feature":
            layer, _, feature = graph.feature_nodes[node].tolist()
            members[groups[layer, feature]].append(place)
        elif kind not in ("error", "target"):
            group = _group(trace, graph.position_of(node) or 0)
            told = f"tokens of no {trace.traced.domain.element}" if group == OUTSIDE else group
            label = f"{trace.side(node)} {told}".strip()
            folds.setdefault(("token", label), []).append(place)
    told = [{"kind": kind, "label": label, "members": own} for (kind, label), own in folds.items()]
    return {"file": to_jsonable(found), "members": members, "folds": told}


def page_edges(trace: "Record") -> dict[str, list[Any]]:
    """`source`, `target` (places among the nodes kept) and `weight` of the most influential edges of the pruned graph,
    and of every node its strongest ones, so that no node that was kept looks unconnected; influential is normalised
    weight × influence of the edge's target."""
    traced = trace.traced
    matrix, (rows, columns) = traced.graph.matrix, traced.pruned.kept.unbind(1)

    def part(some: Tensor) -> Tensor:
        own = torch.isin(rows, some)
        at = torch.searchsorted(some, rows[own])
        return torch.zeros(len(some), len(matrix)).index_put((at, columns[own]), matrix[rows[own], columns[own]])

    weight = influence(matrix, traced.graph.target, part)
    weight[traced.graph.target] = 1
    scores = [torch.zeros(0, dtype=torch.float64)]
    for some in blocks_of(rows.unique(), len(matrix)):
        own = torch.isin(rows, some)
        normalised = normalise(part(some).double()) * weight[some, None]
        scores.append(normalised[torch.searchsorted(some, rows[own]), columns[own]])
    ranked = torch.cat(scores).argsort(descending=True)
    rows, columns = rows[ranked], columns[ranked]
    first = (torch.arange(len(rows)) < EDGES) | (_place_within(rows) < PER_NODE) | (_place_within(columns) < PER_NODE)
    places = traced.pruned.nodes.cumsum(0) - 1
    rows, columns = rows[first], columns[first]
    found = {"source": places[columns], "target": places[rows], "weight": matrix[rows, columns]}
    return {name: values.tolist() for name, values in found.items()}


def _place_within(groups: Tensor) -> Tensor:
    """Of every entry how many of its own group stand before it, `[n]` int64."""
    order = groups.argsort(stable=True)
    counts = groups.bincount()
    found = torch.empty_like(order)
    found[order] = torch.arange(len(order)) - (counts.cumsum(0) - counts)[groups[order]]
    return found


def edge_frame(trace: "Record") -> pl.DataFrame:
    """The edges of the pruned graph, one row each."""
    rows, columns = trace.traced.pruned.kept.unbind(1)
    # of every node once: a graph has far fewer of them than ends of edges
    names = {n: trace.node_id(n) for n in torch.cat([rows, columns]).unique().tolist()}
    return pl.DataFrame(
        {
            "source": [names[n] for n in columns.tolist()],
            "target": [names[n] for n in rows.tolist()],
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
