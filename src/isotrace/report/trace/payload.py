"""The data of the trace page, that its summary does not hold."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from isotrace.attribution.trace import Traced
from isotrace.datasets.annotated import read
from isotrace.dictionaries.shelf import FeatureTables
from isotrace.domains.domain import Domain, Look, Reading
from isotrace.report.atlas.structure import traced_on
from isotrace.report.page import number, signed
from isotrace.report.trace.effects import effects_of
from isotrace.report.trace.graph.kinds import node_kind
from isotrace.report.trace.graph.trace_graph import page_edges, page_supernodes
from isotrace.report.trace.trace import strongest

if TYPE_CHECKING:
    from isotrace.report.trace.record import Record

EFFECTS = ("predicted", "first_order", "graph", "frozen", "free_running")
"""Of the nodes whose ablation was measured to check predictions, see `NodeEffects`."""
LONGEST = 60
"""Letters of an input that is a heading."""
LINKS = 5
"""Elements that the drawing links with the one that is asked about."""
CARDS = 32
"""Features that get a card with drawn examples: the most influential of the circuit."""


def trace_view(trace: "Record") -> dict[str, Any]:
    """What the page shows beside the summary, see `TraceResult.payload`."""
    traced, summary = trace.traced, trace.summary
    subject = traced.frame.frozen.subject
    drawn = {
        name: {u["index"]: u[key] for u in trace.units if u[key] is not None}
        for name, key in (("signed", "score"), ("hidden", "hidden"), ("mass", "mass"))
    }
    positions, signs = traced.unit_scores.positions.tolist(), traced.unit_scores.signed.tolist()
    nodes = torch.nonzero(traced.pruned.nodes)[:, 0].tolist()
    effects, checks = traced.circuit_effects, traced.nodes
    return {
        "title": trace.name or shortened(traced.reading.text),
        "settings": trace.settings,
        "target": {"position": traced.target.position, "predictions": _predictions(trace)},
        "summary": sentences(trace, summary),
        "drawings": {
            name: traced.domain.draw_elements(
                traced.reading, weights, Look(name != "mass", links=_links(traced, weights), tracks=trace.tracks)
            )
            for name, weights in drawn.items()
        },
        "tokens": [
            {
                "pos": p,
                "text": traced.tokens[p],
                "kind": unit.kind,
                "about": list(unit.about),
                "writes": list(written),
                "score": positions[p],
                "signed": signs[p],
                "hidden": traced.hidden.get(written[0]) if len(written) == 1 else None,
                "masked": p in traced.target.asked and not subject.predicts_next,
            }
            for p, (unit, written) in enumerate(zip(traced.reading.units, traced.reading.elements, strict=True))
        ],
        "nodes": [_node(trace, node) for node in nodes],
        "edges": page_edges(trace),
        "n_layers": traced.graph.n_layers,
        "stacks": list(subject.stack_sizes),
        "features": _cards(trace),
        "verification": {
            "nodes": [
                {
                    "id": trace.node_id(int(node)),
                    **{name: float(getattr(checks, name)[i]) for name in EFFECTS},
                    "exact": bool(checks.exact[i]),
                }
                for i, node in enumerate(checks.nodes)
            ]
        },
        "circuit": {
            "control": {"value": effects.control_values.tolist(), "removed": effects.control_removed.tolist()},
            # a part of the circuit's data, which the page hands to its script
            "supernodes": page_supernodes(trace, nodes),
            "network": traced.network.to_dict(),
        },
        "fidelity": fidelity_table(trace.fidelity),
    }


def shortened(text: str) -> str:
    """A text that may stand as a heading; the whole stands below it."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]}…"


def _links(traced: Traced, weights: dict[int, float]) -> tuple[tuple[int, int], ...]:
    """From the elements that weigh most to the one that is asked about, where one is."""
    asked = traced.target.position if traced.target.place is None else traced.target.place
    if asked is None or asked >= len(traced.reading.elements) or len(traced.reading.elements[asked]) != 1:
        return ()
    (goal,) = traced.reading.elements[asked]
    others = sorted((e for e in weights if e != goal), key=lambda e: -abs(weights[e]))
    return tuple((e, goal) for e in others[:LINKS] if weights[e])


def on_structure(trace: "Record") -> dict[str, Any] | None:
    """What `structure_page` takes; None where no structure is given. Raises InputError for one of other chains."""
    if trace.structure is None:
        return None
    data = traced_on(trace.structure, trace.traced.reading, trace.units)
    title, lead = (
        trace.name or shortened(trace.traced.reading.text),
        f"{trace.traced.target.description}, on {data['name']}.",
    )
    return {"data": data, "title": title, "lead": lead, "back": "report.html"}


def sentences(trace: "Record", summary: dict[str, Any]) -> list[str]:
    """What stands behind the finding, in plain words."""
    target, circuit = summary["target"], summary["circuit"]
    unit, probability = target["unit"], target["probability"]
    way, moved = "up" if circuit["full"] >= circuit["empty"] else "down", abs(circuit["full"] - circuit["empty"])
    found = [] if probability is None else [f"Probability {number(probability)}."]
    found.append(
        f"With every feature ablated it would be {number(circuit['empty'])} {unit}, the reference of every effect "
        f"here: all features together move it {way} by {number(moved)}."
    )
    probe = trace.traced.target.probe
    if probe is not None and probe.config.mean is not None:
        mean, sd = probe.config.mean, probe.config.sd
        spread = "" if sd is None else f" (standard deviation {number(sd)})"
        found.append(
            f"What the probe was fitted on averages {number(mean)} {unit}{spread}: this is "
            f"{signed(target['value'] - mean)} from it, the reference {signed(circuit['empty'] - mean)}."
        )
    shown = trace.summary["picture"]["shown"]
    found.append(f"{summary['element'].capitalize()}s that move it most: {strongest(trace.units, 3, shown)} {unit}.")
    return found


def _node(trace: "Record", node: int) -> dict[str, Any]:
    traced, graph = trace.traced, trace.traced.graph
    kind, layer, position = graph.kind_of(node), graph.layer_of(node), graph.position_of(node)
    base: dict[str, Any] = {
        "id": trace.node_id(node),
        "kind": "token" if kind == "position" else kind,
        "layer": layer,
        "pos": position,
        "feature": None,
        "activation": None,
        "influence": float(traced.pruned.influence[node]),
        "effect": float(traced.effects[node]),
        "measured": None,
        "about": None,
        "f1": None,
    }
    if kind == "feature":
        feature = int(graph.feature_nodes[node, 2])
        row = trace.rows.get((layer, feature), {})
        return base | {
            "feature": feature,
            "activation": float(graph.activations[node]),
            "label": trace.tables.label(row),
            "about": node_kind(trace, node),
            "f1": row.get("f1"),
            **effects_of(traced, node),
        }
    if kind == "target":
        return base | {"label": traced.target.name, "influence": 1.0}
    side = trace.side(node)
    if kind == "error":
        word = f"error of layer {layer} ({side})" if side else f"error of layer {layer}"
    else:
        word = f"{side} {kind}".strip()
        if kind == "token" and trace.place(node)[1] < graph.embeddings[trace.place(node)[0]][1]:
            return base | {"label": f"{side} start"}
    return base | {"label": f"{word} {traced.tokens[position or 0]}"}


def _predictions(trace: "Record") -> list[dict[str, Any]] | None:
    traced = trace.traced
    if traced.target.position is None:
        return None
    subject = traced.frame.frozen.subject
    place = subject.reading_position(traced.target.position)
    probabilities = subject.head(traced.frame.frozen.actual.final[0, place]).softmax(-1)
    top = probabilities.topk(6)
    tokens = subject.tokens(top.indices)
    return [{"token": t, "probability": p} for t, p in zip(tokens, top.values.tolist(), strict=True)]


def _cards(trace: "Record") -> dict[str, dict[str, Any]]:
    traced = trace.traced
    subject, dictionary = traced.frame.frozen.subject, traced.frame.dictionary
    keys = list(dict.fromkeys((f["layer"], f["feature"]) for f in trace.features))

    domain = traced.domain
    reader = cache(lambda text: read(subject, domain, text)[1])  # features share examples
    drawn = example_cards(trace.tables, keys[:CARDS], domain, reader)
    cards = {}
    for layer, feature in keys:
        row = trace.rows.get((layer, feature), {})
        cards[f"{layer}_{feature}"] = {
            "layer": layer,
            "feature": feature,
            "label": trace.tables.label(row),
            "concept": row.get("concept"),
            "f1": row.get("f1"),
            "f1_ci": [row.get("f1_ci_low"), row.get("f1_ci_high")],
            "q": row.get("q"),
            "null_f1": row.get("null_f1"),
            "density": float(dictionary.density[layer, feature]),
            "top_outputs": top_outputs(trace, layer, feature),
            "examples": drawn.get((layer, feature), []),
        }
    return cards


def top_outputs(trace: "Record", layer: int, feature: int, n: int = 5) -> list[dict[str, Any]]:
    """Tokens whose logits the feature raises most when its whole write is added to the final hidden state of
    this input (through the head's decoder only, so a coarse view for early layers). None without a head, for what
    is written to an encoder's stream, which no head reads, and where the decoder reads a narrower one (ALBERT)."""
    subject, dictionary = trace.traced.frame.frozen.subject, trace.traced.frame.dictionary
    read = subject.n_layers - subject.stack_sizes[-1]
    slots = [slot for slot, target in enumerate(dictionary.config.targets(layer)) if target >= read]
    if not subject.has_head or not slots:
        return []
    write = dictionary.write_vectors(layer, torch.tensor(feature))[slots].sum(0)
    decoder = subject.module(subject.family.head_decoder)
    if cast(Tensor, decoder.weight).shape[1] != subject.d_model:
        return []
    promoted = decoder(write) - decoder(torch.zeros_like(write))
    promoted = promoted - promoted.mean()
    top = promoted.topk(n)
    return [{"token": t, "weight": w} for t, w in zip(subject.tokens(top.indices), top.values.tolist(), strict=True)]


def fidelity_table(fidelity: dict[str, Any] | None) -> dict[str, Any]:
    """The page's table wants the interval beside its number."""
    shown = {}
    for mode in ("free_running", "teacher_forced"):
        row = dict((fidelity or {}).get(mode) or {})
        if "ci" in row:
            row["loss_recovered_ci"] = row.pop("ci")
        shown[mode] = {"loss_recovered": None, "top1_agreement": None, "loss_recovered_ci": [None, None]} | row
    return shown


def example_cards(
    tables: FeatureTables, keys: list[tuple[int, int]], domain: Domain, reader: Callable[[str], Reading]
) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Drawn examples of each feature; `reader` reads a sequence as the subject and its domain do."""
    cards: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for key, rows in tables.examples_of(keys).items():
        scale = max(row["activation"] for row in rows)
        cards[key] = []
        for row in rows:
            reading = reader(row["sequence"])
            values = [0.0] * len(reading.units)
            weights: dict[int, float] = {}
            for position, value in zip(row["positions"], row["values"], strict=True):
                values[position] = value
                for element in reading.elements[position]:
                    weights[element] = min(scale, max(weights.get(element, 0.0), value))
            cards[key].append(
                {
                    "group": row["group"],
                    "svg": domain.draw_elements(reading, weights, Look(scale=scale, small=True)),
                    "text": reading.text,
                    "activation": row["activation"],
                    "tokens": [[unit.text, value] for unit, value in zip(reading.units, values, strict=True)],
                }
            )
    return cards
