"""What a feature node is about, decided here alone: its field, how the sequence is written, or nothing with a name.

A name is of the field (`named`) unless its concept is one of the domain's own concepts of syntax (`Domain.syntax`):
brackets, ring digits, branches, bond symbols, positions, special tokens. A feature without a name goes by its token:
on one that writes no element it is syntax, else unnamed.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from isotrace.attribution.ablation import ablated, feature_values
from isotrace.attribution.trace import Traced
from isotrace.dictionaries.features import Features
from isotrace.dictionaries.shelf import FeatureTables

if TYPE_CHECKING:
    from isotrace.report.trace.record import Record

Kind = Literal["named", "unnamed", "syntax"]
KINDS: tuple[Kind, ...] = get_args(Kind)


def kind_of(row: Mapping[str, Any], *, on_element: bool, syntax: frozenset[str]) -> Kind:
    """`row`: what the annotation says of the feature, see `FeatureTables.of`; `on_element`: its token writes one."""
    if FeatureTables.named(row):
        return "syntax" if row.get("concept") in syntax else "named"
    return "unnamed" if on_element else "syntax"


def node_kind(trace: "Record", node: int) -> Kind:
    """Of a feature node of the graph."""
    layer, position, feature = trace.traced.graph.feature_nodes[node].tolist()
    on_element = bool(trace.traced.reading.elements[position])
    return kind_of(trace.rows.get((layer, feature), {}), on_element=on_element, syntax=trace.traced.domain.syntax)


def lanes(traced: Traced, features: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What the circuit's features of every kind do, in the target's unit: their number `n`; `sum` of their effects,
    each ablated alone; `share` of the sum of all absolute ones (None where that is 0); `removed`, by how much the
    target falls when all of them are ablated at once, measured. `tokens`: those that write no element, `sum` and
    `share` of the effects of their embeddings, which the picture leaves out, and `mass`, their share of the
    circuit's."""
    found, total = {}, sum(abs(f["effect"]) for f in features)
    subject, dictionary = traced.frame.frozen.subject, traced.frame.dictionary
    sets = [
        torch.tensor([[f["layer"], f["position"], f["feature"]] for f in features if f["kind"] == kind]).reshape(-1, 3)
        for kind in KINDS
    ]
    parts = Features(dictionary), feature_values(dictionary, traced.config.ablation), traced.frame.batch, traced.target
    values = ablated(subject, *parts, [sets[0][:0], *sets], complement=False).tolist()
    for kind, nodes, value in zip(KINDS, sets, values[1:], strict=True):
        effects = [f["effect"] for f in features if f["kind"] == kind]
        found[kind] = _summed(effects, total) | {"removed": values[0] - value if len(nodes) else 0.0}
    signed, mass = traced.unit_scores.signed.tolist(), traced.unit_scores.positions.tolist()
    outside = [p for p, written in enumerate(traced.reading.elements) if not written]
    tokens = _summed([signed[p] for p in outside], sum(map(abs, signed)))
    return found | {"tokens": tokens | {"mass": sum(mass[p] for p in outside)}}


def _summed(effects: Sequence[float], total: float) -> dict[str, Any]:
    share = sum(map(abs, effects)) / total if total > 0 else None
    return {"n": len(effects), "sum": sum(effects), "share": share}
