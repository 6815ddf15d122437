"""What is said of a sweep as a whole: curves, areas, smallest circuits, warnings."""

from collections.abc import Callable
from typing import Any

import numpy as np

LEVELS = (79, 90)
Entry = dict[str, Any]
CURVES: dict[str, Callable[[dict[str, Any]], float]] = {
    "features": lambda e: e["free_running"]["sufficiency"],
    "teacher_forced": lambda e: e["teacher_forced"]["sufficiency"],
    "random": lambda e: e["random"]["mean"],
    "neurons": lambda e: e["neurons"]["sufficiency"],
}


def smallest(entries: list[dict[str, Any]], level: int, get: Callable[[dict[str, Any]], dict[str, Any]]) -> int | None:
    """The first size of the sweep from which on every larger one keeps `level` % too; None where none does."""
    found = None
    for entry in reversed(entries):
        if not get(entry)["sufficiency"] >= level / 100:
            break
        found = entry["n"]
    return found


def area(entries: list[dict[str, Any]], get: Callable[[dict[str, Any]], float]) -> float:
    """Mean share kept over log n, by the trapezoidal rule: one number per curve."""
    x, y = np.log([e["n"] for e in entries]), np.asarray([get(e) for e in entries])
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float(y[0])


def warnings(summary: dict[str, Any]) -> list[str]:
    """What a reader must know before the numbers are believed."""
    found, empty, part = [], summary["empty"]["sufficiency"], summary["mediator"]
    metric = summary["task_metric"]
    if not metric["subject_ci"][0] > metric["chance"]:
        found.append(
            "the subject's own metric is not above chance beyond its interval: every share below is one of almost "
            "nothing"
        )
    if empty > 0.25:
        found.append(
            f"with no {part} at all, the rest of the subject keeps {empty:.0%} of the metric above chance: read the "
            "faithfulness, which starts there"
        )
    if summary["task"]["n_report_groups"] < 10:
        found.append(
            f"the report part has {summary['task']['n_report_groups']} groups: intervals over so few mean little"
        )
    if summary["sweep"][-1]["fraction"] == 1 and summary["sweep"][-1]["free_running"]["sufficiency"] < 0.9:
        found.append(
            f"all {part}s together keep {summary['sweep'][-1]['free_running']['sufficiency']:.0%}: the dictionary "
            "loses part of what the task needs"
        )
    smallest = summary["smallest"]["79"]
    if smallest is None:
        return [*found, "no circuit of the sweep keeps 79 %"]
    entry = next(e for e in summary["sweep"] if e["n"] == smallest)
    if not entry["free_running"]["ci"][0] > entry["random"]["ci"][1]:
        found.append(f"at {smallest} {part}s the interval overlaps that of random circuits")
    if part != "neuron" and not entry["free_running"]["ci"][0] > entry["neurons"]["ci"][1]:
        found.append(f"at {smallest} {part}s the circuit does not beat as many neurons with separate intervals")
    return found
