"""Heads of RXNMapper removed together: the knockout cascade, and whole sets at once; see `head_screening`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from isotrace.discovery.knockout import Cascade, Removed, knockout_cascade
from isotrace.discovery.methods import Problem
from isotrace.discovery.methods.interchange import Screening
from isotrace.interventions import Heads, Values
from isotrace.stats.bootstrap import mean_interval
from isotrace.studies.atom_mapping import NAMED, Masked
from isotrace.studies.study import Setting
from isotrace.subjects.subject import Subject

Row = dict[str, Any]


@torch.no_grad()
def without(
    subject: Subject, items: Sequence[Masked], heads: Sequence[tuple[int, int]], reference: Values
) -> tuple[np.ndarray, np.ndarray]:
    """(metric, share of the tokens asked for that rank first), each `[inputs]`, with `heads` (layer, head) at their
    means."""
    gone = torch.tensor([[layer, -1, head] for layer, head in heads], dtype=torch.long).reshape(-1, 3)
    left, values, right = Removed(Heads(), gone, reference), [], []
    for item in items:
        final = left.record(subject, item.batch)[1]
        best = subject.head(final[0, list(item.asked)]).argmax(-1)
        values.append(float(item.metric(subject, "logit")(item.batch, final)))
        right.append(float((best == item.truth()).double().mean()))
    return np.array(values), np.array(right)


def cascade_rows(
    subject: Subject, items: list[Masked], reference: Values, main: Screening, depth: int, setting: Setting
) -> list[Row]:
    """The `depth` heads with the largest effects go one by one; twice as many are watched, and the named one."""
    seed, rows = setting.seed, main.rows(seed=setting.seed)
    leading = [[row.layer, -1, row.component] for row in rows]
    named = [NAMED[0], -1, NAMED[1]]
    watched = leading[: 2 * depth] + ([] if named in leading[: 2 * depth] else [named])
    order, look = torch.tensor(leading[:depth]), torch.tensor(watched)
    parts = [
        knockout_cascade([Problem(subject, Heads(), m.batch, m.metric(subject, "logit"), reference)], order, look)
        for m in setting.progress(items, "knockout cascade")
    ]
    metric, effects = (np.concatenate([getattr(part, name) for part in parts], 1) for name in ("metric", "effects"))
    cascade = Cascade(order, look, metric, effects)
    return [
        {
            "removed": ", ".join(f"{layer}.{head}" for layer, _, head in leading[: change.step]),
            "metric": float(cascade.metric[change.step].mean()),
            "metric_ci": mean_interval(cascade.metric[change.step], seed),
            "head": f"{change.node[0]}.{change.node[2]}",
            "alone": change.alone, "alone_ci": change.alone_ci,
            "effect": change.effect, "effect_ci": change.effect_ci,
            "change": change.change, "change_ci": change.change_ci,
            "verdict": change.verdict, "inputs": len(items),
        }
        for change in cascade.changes(seed=seed)
    ]  # fmt: skip


def joint_rows(
    subject: Subject, items: list[Masked], reference: Values, main: Screening, n_random: int, setting: Setting
) -> list[Row]:
    """Whole sets of heads at their means: the named one, its index in every layer, other indices, random sets."""
    single = {(n[0], n[2]): float(e) for n, e in zip(main.nodes.tolist(), main.effects.mean(0), strict=True)}
    n_layers, n_heads = subject.n_layers, subject.n_heads(0)
    others = [head for head in range(n_heads) if head != NAMED[1]]
    rng = np.random.default_rng(setting.seed)
    sets: dict[str, list[list[tuple[int, int]]]] = {
        "none": [[]],
        "the named head": [[NAMED]],
        "its index in the other layers": [[(n, NAMED[1]) for n in range(n_layers) if n != NAMED[0]]],
        "its index in all layers": [[(n, NAMED[1]) for n in range(n_layers)]],
        "another index in all layers": [[(n, head) for n in range(n_layers)] for head in others],
        "random, one of another index per layer": [
            [(n, int(rng.choice(others))) for n in range(n_layers)] for _ in range(n_random)
        ],
    }
    clean, rows = without(subject, items, [], reference)[0], []
    for name, draws in setting.progress(list(sets.items()), "sets of heads removed"):
        found = [without(subject, items, chosen, reference) for chosen in draws]
        falls, right = [clean - values for values, _ in found], [shares for _, shares in found]
        units = (lambda v: v[0]) if len(draws) == 1 else (lambda v: np.mean(v, 1))  # inputs, or sets where several
        rows.append({
            "removed": name, "sets": len(draws), "heads": len(draws[0]), "inputs": len(items),
            "fall": float(np.mean(falls)), "fall_ci": mean_interval(units(falls), setting.seed),
            "fall_min": float(np.mean(falls, 1).min()), "fall_max": float(np.mean(falls, 1).max()),
            "sum_of_single_falls": float(np.mean([sum(single[head] for head in chosen) for chosen in draws])),
            "metric": float(clean.mean() - np.mean(falls)),
            "accuracy": float(np.mean(right)), "accuracy_ci": mean_interval(units(right), setting.seed),
        })  # fmt: skip
    return rows
