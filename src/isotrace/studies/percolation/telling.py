"""What is drawn and said of functional percolation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from isotrace.studies.percolation.observables import closed_forms
from isotrace.studies.study import Line, Plot

Row = dict[str, Any]
K, PHI = 5, 0.1
REACHED = 0.05
"""Share of the graph behind which a cascade counts."""
SOME = 0.01
"""Of starts with a cascade, from which on it counts as possible."""
SHOWN = {
    "giant": "share of the giant component",
    "complexity": "inputs that a node depends on",
    "entropy": "entropy of a node's outputs, bits",
    "functions": "distinct functions",
}


def plots(rows: Sequence[Row], far: Sequence[Row], map_: Sequence[Row], best: np.ndarray, points: np.ndarray):
    z = [row["degree"] for row in rows]
    fine = np.linspace(min(z), max(z), 121).tolist()
    made = [
        Plot(title, "mean degree z", name, (
            _line("simulated, mean of graphs", z, rows, name, dots=True),
            Line("closed form", fine, [closed_forms(v, K)[name] for v in fine]),
        ))
        for name, title in SHOWN.items()
    ]  # fmt: skip
    near = [row for row in far if row["distance"].isdigit()]
    steps = [float(row["distance"]) for row in near]
    lines = _line("input", steps, near, "bits"), _line("input of other patterns", steps, near, "null")
    said = "All degrees of 1 and more; every input of every graph counts alike."
    made.append(Plot("transfer entropy by distance", "steps from the input", "bits", lines, said))
    classes = {}
    for row in map_:
        name = f"{'cascades' if row['share'] > SOME else 'none'}, theory: {'yes' if row['possible'] else 'no'}"
        classes.setdefault(name, []).append((row["degree"], row["phi"]))
    lines = tuple(Line(name, *zip(*places, strict=True), dots=True) for name, places in sorted(classes.items()))
    said = f"A cascade: more than {REACHED:.0%} of the graph from one node, in more than {SOME:.0%} of the starts."
    made.append(Plot("where cascades are possible", "mean degree z", "threshold φ", lines, said))
    lines = (
        Line("graphs of all degrees", *points.T.tolist(), dots=True),
        Line("no graph exceeds these in both", *best.T.tolist(), dots=True),
    )
    made.append(Plot("complexity against functions", SHOWN["complexity"], SHOWN["functions"], lines))
    return tuple(made)


def _line(name: str, x: Sequence[float], rows: Sequence[Row], key: str, dots: bool = False) -> Line:
    low, high = zip(*(row[f"{key}_ci"] for row in rows), strict=True)
    return Line(name, x, [row[key] for row in rows], low, high, dots)


def verdict(rows: Sequence[Row], map_: Sequence[Row], more: Sequence[Row], of: Row, steps: Sequence[Row]) -> list[str]:
    ors, peak = min(row["or_share"] for row in rows), max(rows, key=lambda row: row["entropy"])
    worst = max(abs(row["giant"] - row["giant_closed"]) for row in rows)
    right = np.mean([row["possible"] == (row["share"] > SOME) for row in map_])
    wide = max(more, key=lambda row: row["functions"])
    return [
        "The published transition of function is that of connection, seen through functions of S, the share of the "
        f"giant component: with φ = {PHI} and one node an input, at least {ors:.2%} of the nodes compute the OR of the "
        "inputs that they are connected to, at every mean degree. So complexity is k S², and the number of functions "
        f"rises from {1 + K} to {2 + K}, once. (S of the simulation is at most {worst:.3f} from its closed form.)",
        f"The entropy of a node's outputs peaks at z = {peak['degree']:g}, since many nodes are connected there, to "
        "few inputs yet; nothing is critical about it.",
        "What is published as decision-tree complexity counts the inputs that a node depends on; of an OR the depth "
        "of the tree is the same number.",
        f"Whether one node can set off a cascade is foretold by the degrees in {right:.0%} of the points of the map.",
        "Both axes of the Pareto front are functions of S, so that it says nothing about the best structure.",
        "More than connection shows where one neighbour is not enough and inputs are many nodes: "
        f"{wide['variant']}, at z = {wide['degree']:g}, give {wide['functions']:.0f} functions, and "
        f"{wide['or_share']:.0%} of the nodes compute an OR. Inverting nodes turn on at once and leave next to nothing "
        "to depend on an input (table variants).",
        f"In {of['circuits']} traced circuits a feature depends on {of['complexity']:.2g} of "
        f"{of['inputs']:.2g} inputs (random inputs of the same layers {of['complexity_random_inputs']:.2g}), and "
        f"{of['or_share']:.0%} of those that depend on any compute an OR. By steps in the graph a pair is dependent in "
        + ", ".join(f"{row['depends']:.2%} ({row['distance']})" for row in steps)
        + " of the cases.",
    ]
