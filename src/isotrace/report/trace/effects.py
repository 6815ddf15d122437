"""Effects of single features as a trace tells them: measured beside what was predicted."""

from typing import Any

from isotrace.attribution.trace import Traced
from isotrace.stats.bootstrap import pearson_interval

AGREEMENT = 0.5
"""Correlation of the frozen graph's effects with those of the running subject below which a trace warns."""


def effects_of(traced: Traced, node: int) -> dict[str, Any]:
    """By how much the target falls where a feature node is ablated: `effect` in the running subject, `measured` or,
    where it was not, to first order; `first_order` and `graph_effect`, the frozen graph's, beside it."""
    live = traced.live
    return {
        "effect": float(live.best[node]),
        "measured": not bool(live.measured[node].isnan()),
        "first_order": float(live.first_order[node]),
        "graph_effect": float(traced.graph_effects[node]),
    }


def checked(traced: Traced) -> dict[str, Any]:
    """Pearson's r over the nodes drawn, of what is predicted with what is measured, see `NodeEffects`. `rest` leaves
    out the nodes that were measured beforehand."""
    nodes, seed = traced.nodes, traced.config.seed
    rest = ~nodes.exact
    pairs = {
        "free_running": (nodes.predicted, nodes.free_running),
        "first_order": (nodes.first_order, nodes.free_running),
        "rest": (nodes.first_order[rest], nodes.free_running[rest]),
        "graph": (nodes.graph, nodes.free_running),
        "frozen": (nodes.graph, nodes.frozen),
    }
    found: dict[str, Any] = {"n_nodes": len(nodes.nodes), "n_exact": int(nodes.exact.sum())}
    for name, (x, y) in pairs.items():
        r, *ci = pearson_interval(x.numpy(), y.numpy(), seed)
        found |= {f"pearson_{name}": r, f"pearson_{name}_ci": ci}
    return found


def agreement(traced: Traced) -> float:
    """Pearson's r, over all feature nodes of the graph, of the frozen graph's effects with those of the running
    subject."""
    graph, live = traced.graph_effects.numpy(), traced.live.best.numpy()
    return pearson_interval(graph, live, traced.config.seed, n_draws=2)[0]


def disagreement(traced: Traced) -> list[str]:
    """A warning, where there is cause for one."""
    if (r := agreement(traced)) >= AGREEMENT or r != r:
        return []
    return [
        f"Frozen graph and running model disagree on what features do (r = {r:.2f}): edges and masses are those "
        "of the graph, effects those of the model."
    ]
