"""Where circuits fall apart: percolation against faithfulness, on drug-like molecules (METHODS §5).

For every molecule and target: the circuit of a trace, its edges removed from the weakest on. Two points are compared,
both as the mean degree of the network that is left: where the susceptibility peaks, and where faithfulness falls below
one half. Each stands beside the same point of networks with the same edges and shuffled weights.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from isotrace.attribution.circuits.choice import choose_circuit
from isotrace.attribution.graph import AttributionGraph, Frame, build_graph, frame
from isotrace.attribution.influence import Pruned
from isotrace.attribution.percolation import BROKEN, NetworkView, network_view
from isotrace.attribution.trace import TraceConfig, prune_to_circuit
from isotrace.base.errors import InputError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.saving import load_dictionary
from isotrace.stats.bootstrap import interval, mean_interval
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import Batch, Subject, load_subject
from isotrace.subjects.targets import Target, parse_target

SUBJECT, DICTIONARY = "bundled:molm", "bundled:molm-clt"
TARGETS = ("probe:bbb", "mask")
SIZES = {True: (6, 24, 3), False: (60, 48, 20)}
"""quick → molecules, largest number of thresholds, shuffles whose faithfulness is measured."""
DEGREES = ("percolation_degree", "percolation_degree_null", "break_degree", "break_degree_null")
OTHERS = ("giant_at_break", "peak_susceptibility", "peak_susceptibility_null", "faithfulness")


@study("network", "Percolation of circuits beside their faithfulness, with shuffled weights as null")
def network(setting: Setting) -> Outcome:
    subject = load_subject(SUBJECT)
    dictionary = load_dictionary(DICTIONARY, subject)
    n_molecules, n_thresholds, n_faithful = SIZES[setting.quick]
    jobs = [(s, t) for s in molecules(subject, n_molecules, setting.seed) for t in TARGETS]
    rows, curves = [], []
    for smiles, kind in setting.progress(jobs, "tracing circuits"):
        target = target_of(subject, smiles, kind)
        view = traced(subject, dictionary, smiles, target, n_thresholds, n_faithful, setting.seed)
        if view is None:
            continue
        rows.append(row(smiles, kind, view))
        curves += curve(smiles, kind, view)
    summary = [summarised(kind, [r for r in rows if r["target"] == kind], setting.seed) for kind in TARGETS]
    return Outcome({"network": summary, "molecules": rows, "curves": curves}, notes(summary, len(jobs) - len(rows)))


def molecules(subject: Subject, n: int, seed: int, split: str = "test") -> list[str]:
    """At most `n`, drawn from a scaffold part of `bbb`, of 12 to 60 tokens."""
    table = bundled_table("bbb").filter(bundled_table("bbb")["split_scaffold"] == split)
    found = []
    for place in np.random.default_rng(seed).permutation(table.height).tolist():
        smiles = table["smiles"][place]
        try:
            batch = subject.tokenize([smiles])
        except InputError:
            continue
        if 12 <= batch.ids.shape[1] <= 60:
            found.append(smiles)
        if len(found) == n:
            break
    return found


def target_of(subject: Subject, smiles: str, kind: str) -> str:
    """`mask` hides the token in the middle of the sequence."""
    return kind if kind != "mask" else f"mask:{subject.tokenize([smiles]).ids.shape[1] // 2}"


@dataclass(frozen=True, eq=False)
class Traced:
    """What `isotrace trace` finds of a molecule, before anything is told of it."""

    target: Target
    batch: Batch
    framed: Frame
    graph: AttributionGraph
    pruned: Pruned


def traced_circuit(subject: Subject, dictionary: Dictionary, smiles: str, target: str) -> Traced:
    """The graph, and the circuit in it, with the settings of `isotrace trace`."""
    config, batch = TraceConfig(), subject.tokenize([smiles])
    goal = parse_target(target, subject, batch)
    prepared = goal.prepare(subject, batch)
    framed = frame(subject, dictionary, prepared, goal)
    graph = build_graph(framed, max_features=config.max_features)
    parts = {"shares": config.sizes, "tolerance": config.tolerance, "ablation": config.ablation}
    circuit = choose_circuit(subject, framed, goal, graph.feature_nodes, **parts).circuit
    pruned = prune_to_circuit(graph, circuit, config.node_threshold, config.edge_threshold)
    return Traced(goal, prepared, framed, graph, pruned)


def traced(
    subject: Subject, dictionary: Dictionary, smiles: str, target: str, n_thresholds: int, n_faithful: int, seed: int
) -> NetworkView | None:
    """The circuit as `isotrace trace` finds it; None where it has fewer than three features."""
    found = traced_circuit(subject, dictionary, smiles, target)
    if int(found.pruned.nodes[: found.graph.n_features].sum()) < 3:
        return None
    return network_view(
        subject,
        found.framed,
        found.graph,
        found.pruned,
        found.target,
        ablation=TraceConfig().ablation,
        seed=seed,
        n_thresholds=n_thresholds,
        n_shuffled_faithfulness=n_faithful,
    )


def row(smiles: str, kind: str, view: NetworkView) -> dict[str, Any]:
    """One circuit. Mean degrees are those of the network left at the point; None where faithfulness never breaks."""
    degree, peaks = view.curve.mean_degree, view.shuffled_percolates
    broken = [degree[k] for k in view.shuffled_breaks if k is not None]
    return {
        "smiles": smiles,
        "target": kind,
        "nodes": len(view.network.nodes),
        "edges": int(view.edges[0]),
        "features": view.network.n_features,
        "faithfulness": float(view.faithfulness[0]),
        "percolation_degree": float(degree[view.percolates]),
        "percolation_degree_null": float(degree[peaks].mean()),
        "percolation_degree_null_ci": interval(degree[peaks]),
        "break_degree": None if view.breaks is None else float(degree[view.breaks]),
        "break_degree_null": float(np.mean(broken)) if broken else None,
        "peak_susceptibility": float(view.curve.susceptibility.max()),
        "peak_susceptibility_null": float(np.mean([p.susceptibility.max() for p in view.shuffled])),
        "giant_at_break": None if view.breaks is None else float(view.curve.giant[view.breaks]),
    }


def curve(smiles: str, kind: str, view: NetworkView) -> list[dict[str, Any]]:
    """One row per threshold."""
    giants = np.stack([p.giant for p in view.shuffled])
    return [
        {
            "smiles": smiles,
            "target": kind,
            "threshold": float(view.thresholds[k]),
            "mean_degree": float(view.curve.mean_degree[k]),
            "giant": float(view.curve.giant[k]),
            "giant_null": float(giants[:, k].mean()),
            "giant_null_ci": interval(giants[:, k]),
            "susceptibility": float(view.curve.susceptibility[k]),
            "components": float(view.curve.components[k]),
            "features": int(view.features[k]),
            "faithfulness": float(view.faithfulness[k]),
        }
        for k in range(len(view.thresholds))
    ]


def summarised(kind: str, rows: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    """Means over circuits with bootstrap intervals; points are compared as ratios of mean degrees within a circuit."""
    found: dict[str, Any] = {"target": kind, "circuits": len(rows), "broken": 0}
    columns = {name: [r[name] for r in rows] for name in (*DEGREES, *OTHERS)}
    for name, other in (("percolation", "percolation_degree"), ("null", "break_degree_null")):
        columns[f"log10_break_over_{name}"] = [_log_ratio(r["break_degree"], r[other]) for r in rows]
    found["broken"] = sum(r["break_degree"] is not None for r in rows)
    for name, column in columns.items():
        values = np.array([v for v in column if v is not None])
        found[name] = float(values.mean()) if len(values) else float("nan")
        found[f"{name}_ci"] = list(mean_interval(values, seed))
    return found


def _log_ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None or a <= 0 or b <= 0 else float(np.log10(a / b))


def notes(summary: list[dict[str, Any]], left_out: int) -> tuple[str, ...]:
    found = [
        "A diagnostic of how a circuit hangs together; no claim about the model rests on it.",
        "Edges into features and into the target have different units, and one threshold cuts both.",
        f"Faithfulness breaks where it is first below {BROKEN}; a circuit of which it never is has no such point.",
    ]
    for r in summary:
        for name, other in (("percolation", "where susceptibility peaks"), ("null", "where shuffled weights lose it")):
            mean, (low, high) = r[f"log10_break_over_{name}"], r[f"log10_break_over_{name}_ci"]
            side = "the interval holds 1" if low <= 0 <= high else "above" if low > 0 else "below"
            found.append(
                f"{r['target']}: faithfulness is lost at {10**mean:.2f} [{10**low:.2f}, {10**high:.2f}] times the mean "
                f"degree {other} ({side})."
            )
    if left_out:
        found.append(f"{left_out} circuits of fewer than three features are left out.")
    return tuple(found)
