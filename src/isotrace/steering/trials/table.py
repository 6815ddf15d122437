"""What a trial is told by: rows of a table, the order of doses and effects, the largest of many numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from isotrace.stats.bootstrap import interval, mean_interval
from isotrace.stats.metrics import spearman
from isotrace.steering.trials.arm import Arm

WORST = 5
"""Of confounds and of what else moved, those that are told."""
DOSES = 3
"""Fewest of which an order is told."""


def dose_row(arm: Arm, seed: int) -> dict[str, Any]:
    """What an arm is told by, None where it was not made."""
    low, high = mean_interval(arm.known, seed)
    first = arm.first[np.isfinite(arm.first)]
    made = arm.designs is not None
    return {
        "dose": arm.dose,
        "alpha": 0.0 if arm.dose == 0 else None if arm.reached is None else arm.reached.alpha,
        "kl": 0.0 if arm.dose == 0 else None if arm.reached is None else arm.reached.kl,
        "effect": arm.effect if made else None,
        "ci": [low, high],
        "first_round": float(first.mean()) if len(first) else None,
        "starts": len(arm.known),
        "valid": sum(row.valid for row in arm.rows) / len(arm.rows) if arm.rows else None,
        "distinct": len({row.sequence for row in arm.rows}) if arm.rows else None,
        "degenerate": arm.degenerate if made else None,
        "forwards": arm.designs.forwards if arm.designs is not None else None,
        "why": arm.why,
    }


def rising(arms: Sequence[Arm], seed: int, n_draws: int = 2_000) -> dict[str, Any]:
    """Spearman of dose and effect over the doses of a start: its median over starts with a 95 % bootstrap interval. NaN
    for fewer than three doses, and for a start whose effects are all the same."""
    known = np.zeros(0)
    if len(arms) >= DOSES:
        table = np.stack([arm.effects for arm in arms], 1)
        table, doses = table[np.isfinite(table).all(1)], np.asarray([arm.dose for arm in arms])
        one = np.ones((1, len(doses)))
        found = np.asarray([float(spearman(row[:, None], doses, one)[0]) for row in table])
        known = found[np.isfinite(found)]
    ends = (float("nan"), float("nan"))
    if len(known) > 1:
        drawn = np.random.default_rng((seed, 19)).integers(len(known), size=(n_draws, len(known)))
        ends = interval(np.median(known[drawn], axis=1))
    median = float(np.median(known)) if len(known) else float("nan")
    return {"median": median, "ci": list(ends), "starts": len(known), "doses": len(arms)}


def worst(values: Mapping[str, float], n: int = WORST) -> list[dict[str, Any]]:
    """The `n` largest of them, NaN last."""
    ranked = sorted(values.items(), key=lambda pair: -abs(pair[1]) if pair[1] == pair[1] else 0.0)
    return [{"name": name, "value": value} for name, value in ranked[:n]]
