"""What is said of a sweep as a whole: curves, areas, warnings."""

from collections.abc import Callable
from typing import Any

import numpy as np

from isotrace.discovery.tasks.choice import chosen

CURVES: dict[str, Callable[[dict[str, Any]], float]] = {
    "features": lambda e: e["free_running"]["sufficiency"],
    "teacher_forced": lambda e: e["teacher_forced"]["sufficiency"],
    "random": lambda e: e["random"]["mean"],
    "neurons": lambda e: e["neurons"]["sufficiency"],
}


def in_hindsight(sizes: list[int], entries: list[dict[str, Any]]) -> dict[str, dict[str, int | None]]:
    """The rule of `choice` on the report part itself, curve by curve: a description of the curves, no result, since it
    chooses on what it is measured on."""
    return {name: chosen(sizes, [get(entry) for entry in entries]) for name, get in CURVES.items()}


def area(entries: list[dict[str, Any]], get: Callable[[dict[str, Any]], float]) -> float:
    """Mean share kept over log n, by the trapezoidal rule: one number per curve."""
    x, y = np.log([e["n"] for e in entries]), np.asarray([get(e) for e in entries])
    return float(np.trapezoid(y, x) / (x[-1] - x[0])) if len(x) > 1 else float(y[0])


def warnings(summary: dict[str, Any]) -> list[str]:
    """What a reader must know before the numbers are believed."""
    found, empty, part = [], summary["empty"]["sufficiency"], summary["mediator"]
    metric = summary["task_metric"]
    above = metric["subject_ci"][0] > metric["chance"]
    if not above:
        found.append(
            "the subject's own metric is not above chance beyond its interval, so that no share of it is given: "
            "check the labels, give more sequences, or another subject"
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
    return found + (_about_the_choice(summary, part) if above else [])


def _about_the_choice(summary: dict[str, Any], part: str) -> list[str]:
    if not summary["choice"]["sweep"]:
        return ["the discovery part cannot be halved by group, so that no size of the circuit could be chosen"]
    if summary["chosen"]["79"] is None:
        return ["on the discovery part no circuit keeps 79 %, so that none is chosen"]
    found, circuit = [], summary["chosen"]["79"]
    n, kept = circuit["n"], circuit["free_running"]
    if not kept["sufficiency"] >= 0.79:
        found.append(f"{n} {part}s were chosen to keep 79 % and keep {kept['sufficiency']:.0%} on the report part")
    if not kept["ci"][0] > circuit["random"]["ci"][1]:
        found.append(f"at {n} {part}s the interval overlaps that of random circuits")
    if part != "neuron" and not kept["ci"][0] > circuit["neurons"]["ci"][1]:
        found.append(f"at {n} {part}s the circuit does not beat as many neurons with separate intervals")
    return found
