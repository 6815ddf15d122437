"""Attribution graph as JSON that circuit viewers read (Neuronpedia's graph schema)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from isotrace import __version__
from isotrace.attribution.trace import Traced
from isotrace.subjects.heads.outputs import REGRESSION


def graph_json(
    traced: Traced, edges: Mapping[str, list[Any]], *, scan: str, slug: str, labels: dict[tuple[int, int], str]
) -> dict[str, Any]:
    """The pruned graph with `edges`, those of its page, as three lists, their ends places in `nodes`: see `linked`.
    Error ids are `ERR_{layer}_{position}`: the usual `0_{layer}_{position}` collides with features of layer 0. Position
    embeddings, which the schema does not know, are joined to their tokens."""
    graph, pruned, places = traced.graph, traced.pruned, []
    nodes: dict[str, dict[str, Any]] = {}
    token_ids = traced.frame.batch.ids[0].tolist()
    kept = torch.nonzero(pruned.nodes)[:, 0].tolist()
    order = sorted(kept, key=lambda n: -float(pruned.influence[n]))
    share = torch.cumsum(pruned.influence[order], 0) / pruned.influence[order].sum().clamp(min=1e-30)
    cumulative = dict(zip(order, share.tolist(), strict=True))
    for node in kept:
        kind, layer, position = graph.kind_of(node), graph.layer_of(node), graph.position_of(node)
        base = {"ctx_idx": position, "influence": cumulative[node], "reverse_ctx_idx": 0}
        if kind == "feature":
            feature = int(graph.feature_nodes[node, 2])
            entry = {
                "node_id": f"{layer}_{feature}_{position}",
                "feature": (layer + feature) * (layer + feature + 1) // 2 + feature,
                "layer": str(layer),
                "feature_type": "cross layer transcoder",
                "jsNodeId": f"{layer}_{feature}-0",
                "clerp": labels.get((layer, feature), ""),
                "activation": float(graph.activations[node]),
            }
        elif kind == "error":
            entry = {
                "node_id": f"ERR_{layer}_{position}",
                "feature": -1,
                "layer": str(layer),
                "feature_type": "mlp reconstruction error",
                "jsNodeId": f"{layer}_{position}-0",
                "clerp": f"error, layer {layer}, {traced.tokens[position or 0]}",
            }
        elif kind == "target":
            asked = traced.target.position
            at = graph.n_tokens - 1 if asked is None else min(asked, graph.n_tokens - 1)  # or behind the last token
            vocabulary_id = 0 if traced.target.positive is None else traced.target.positive
            probability = target_probability(traced)
            probability = 1.0 if probability is None else probability  # viewers ask for one
            entry = {
                "node_id": f"{graph.n_layers + 1}_{vocabulary_id}_{at}",
                "feature": vocabulary_id,
                "layer": str(graph.n_layers + 1),
                "feature_type": "logit",
                "jsNodeId": f"L_{vocabulary_id}-{at}",
                "clerp": f'Output "{traced.target.name}" (p={probability:.3f})',
                "token_prob": probability,
                "is_target_logit": True,
            }
            base["ctx_idx"] = at
        else:
            vocabulary_id = token_ids[position or 0]
            entry = {
                "node_id": f"E_{vocabulary_id}_{position}",
                "feature": position,
                "layer": "E",
                "feature_type": "embedding",
                "jsNodeId": f"E_{vocabulary_id}-{position}",
                "clerp": f"token {traced.tokens[position or 0]}",
            }
        nodes.setdefault(entry["node_id"], base | entry)
        places.append(entry["node_id"])
    numbers = {name: number for number, name in enumerate(nodes)}
    weights: dict[tuple[int, int], float] = {}
    for source, target, weight in zip(*(edges[name] for name in ("source", "target", "weight")), strict=True):
        pair = numbers[places[source]], numbers[places[target]]
        weights[pair] = weights.get(pair, 0.0) + weight
    settings = {"node_threshold": traced.config.node_threshold, "edge_threshold": traced.config.edge_threshold}
    return {
        "metadata": {
            "slug": slug,
            "scan": scan,
            "prompt_tokens": list(traced.tokens),
            "prompt": traced.reading.text,
            "node_threshold": traced.config.node_threshold,
            "schema_version": 1,
            "info": {
                "description": traced.target.description,
                "generator": {"name": "isotrace", "version": __version__, "url": ""},
            },
            "pruning_settings": settings,
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": list(nodes.values()),
        "links": {
            "source": [source for source, _ in weights],
            "target": [target for _, target in weights],
            "weight": list(weights.values()),
        },
    }


def linked(viewer: Mapping[str, Any]) -> dict[str, Any]:
    """What `graph_json` found, as the schema has it: the ends of links by name."""
    ids, links = [node["node_id"] for node in viewer["nodes"]], viewer["links"]
    rows = zip(*(links[name] for name in ("source", "target", "weight")), strict=True)
    return {**viewer, "links": [{"source": ids[s], "target": ids[t], "weight": w} for s, t, w in rows]}


def target_probability(traced: Traced) -> float | None:
    """Probability of the target's token or class; None for a number, which has none."""
    target, frozen = traced.target, traced.frame.frozen
    final = frozen.actual.final
    if target.outputs is not None:
        task = frozen.subject.require_task()
        if task.problem == REGRESSION or (task.problem is None and target.kind == "output"):
            return None
        outputs = task.outputs(task.pooled(traced.frame.batch, final, target.place))
        return float(task.probabilities(outputs)[0, np.argmax(target.outputs)])
    if target.position is not None:
        place = frozen.subject.reading_position(target.position)
        return float(frozen.subject.head(final[0, place]).softmax(-1)[target.positive])
    probe = None if target.probe is None else target.probe.config
    known = probe is not None and probe.task == "classification" and len(probe.outputs) == 1
    return float(torch.sigmoid(torch.tensor(traced.value))) if known else None
