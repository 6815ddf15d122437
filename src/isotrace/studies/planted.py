"""Do the methods find a circuit that is known? On four subjects with weights written by hand, see `planted_subjects`.

1. rank     every method, on every kind of node: mean score over inputs, all positions of a node together
2. count    the first n nodes, n = size of the true circuit, so that precision and recall are the same number; of nodes
            with equal scores those outside the circuit come first
3. check    the true circuit itself: all else at its mean (sufficiency), and it alone at its mean (necessity)

And on seven subjects that run a program over tokens, see `programs`: how well each method tells the program's edges
from all others, and what program is read out of a circuit's heads and tables.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isotrace.discovery.edges import circuits
from isotrace.discovery.methods import METHODS, Problem
from isotrace.interventions.edges import Edges
from isotrace.stats.bootstrap import bootstrap_weights, interval, mean_interval
from isotrace.stats.share import share
from isotrace.studies.study import Outcome, Setting, study
from isotrace.studies.worlds.planted_problems import (
    COMPONENTS,
    RESOLUTION,
    Reference,
    effects_of,
    problem_of,
    truth_of,
)
from isotrace.studies.worlds.planted_subjects import Planted, planted_subjects
from isotrace.studies.worlds.program_edges import edge_notes, edge_rows, readout_rows
from isotrace.studies.worlds.programs import programs

N_RANDOM, N_DRAWS, N_CIRCUITS = 200, 1_000, 20


@dataclass(frozen=True)
class Recovery:
    """Share of the first |truth| nodes that are true, with a 95 % bootstrap interval over inputs; `unsigned`: the same
    when ranked by mean |score|; `last`: rank of the last true node."""

    precision: float
    precision_ci: tuple[float, float]
    unsigned: float
    last: int


def ranking(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Nodes by falling score `[nodes]`; among equals those that are not true (`truth [nodes]` bool) first, for a
    method that cannot tell them apart has found neither. Scores below `RESOLUTION` of the largest are equal to 0."""
    resolved = np.where(np.abs(scores) < RESOLUTION * np.abs(scores).max(), 0.0, scores)
    return np.lexsort((truth, -resolved))


def recovery(effects: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> Recovery:
    """Of scores `[inputs, nodes]`."""
    n, size = len(effects), int(truth.sum())

    def precision(scores: np.ndarray) -> float:
        return float(truth[ranking(scores, truth)[:size]].mean())

    weights = bootstrap_weights(n, N_DRAWS, rng) / n
    bounds = interval(np.array([precision(scores) for scores in weights @ effects]))
    mean = effects.mean(0)
    last = int(np.flatnonzero(truth[ranking(mean, truth)])[-1]) + 1
    return Recovery(precision(mean), bounds, precision(np.abs(effects).mean(0)), last)


def random_precision(truth: np.ndarray, seed: int) -> tuple[float, tuple[float, float]]:
    """Mean over random rankings, with its 95 % interval."""
    rng = np.random.default_rng(seed)
    found = np.array([rng.permutation(truth)[: truth.sum()].mean() for _ in range(N_RANDOM)])
    return float(found.mean()), mean_interval(found, seed)


@torch.no_grad()
def kept(problem: Problem, keep: Tensor) -> np.ndarray:
    """M `[inputs]` with all nodes at their reference but those of `keep [nodes]` bool, see `truth_of`."""
    if isinstance(problem.components, Edges):
        return circuits.kept(problem, keep[None])[0].double().numpy()
    masks = keep.split([n for n, _ in problem.components.sizes(problem.subject)])
    with problem.components.edited(
        problem.subject, lambda layer, z: torch.where(masks[layer][:, None], z, problem.reference[layer])
    ):
        final = problem.subject.hidden(problem.batch.ids, problem.batch.mask)
    return problem.metric(problem.batch, final).double().numpy()


def circuit_row(planted: Planted, kind: str, seed: int, n_random: int) -> dict[str, Any]:
    """Sufficiency (M(C) − M(∅)) / (M(all) − M(∅)) and necessity (M(all) − M(¬C)) / (M(all) − M(∅)) of the true
    circuit, and of random ones as large."""
    problem = problem_of(planted, kind, "mean")
    keep, rng = truth_of(planted, kind), np.random.default_rng(seed)
    full, empty = problem.value().double().numpy(), kept(problem, torch.zeros_like(keep))

    def shares(circuit: Tensor, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        span = weights @ (full - empty)
        sufficiency, necessity = kept(problem, circuit) - empty, full - kept(problem, ~circuit)
        noise = RESOLUTION * np.abs(weights @ full)
        return share(weights @ sufficiency, span, noise), share(weights @ necessity, span, noise)

    n = len(full)
    even = np.full((1, n), 1 / n)
    draws = np.concatenate([even, bootstrap_weights(n, N_DRAWS, rng) / n])
    random = [shares(torch.from_numpy(rng.permutation(keep.numpy())), even) for _ in range(n_random)]
    row: dict[str, Any] = {"subject": planted.name, "mediator": kind, "nodes": len(keep), "circuit": int(keep.sum()),
                           "metric": float(full.mean()), "ablated": float(empty.mean())}  # fmt: skip
    nulls = np.array(random)[:, :, 0].T
    for name, found, null in zip(("sufficiency", "necessity"), shares(keep, draws), nulls, strict=True):
        row |= {name: float(found[0]), f"{name}_ci": interval(found[1:]),
                f"random_{name}": float(null.mean()), f"random_{name}_ci": mean_interval(null, seed)}  # fmt: skip
    return row


def recovery_rows(planted: Planted, kind: str, reference: Reference, seed: int) -> Iterator[dict[str, Any]]:
    """A row for every method that ranks nodes, or edges; of one that refuses, the reason and no numbers."""
    problem = problem_of(planted, kind, reference)
    truth = truth_of(planted, kind).numpy()
    random, random_ci = random_precision(truth, seed)
    for method in METHODS.values():
        if (method.ranks == "edge") != (kind == "edge"):
            continue
        row = {"subject": planted.name, "mediator": kind, "reference": reference, "method": method.name,
               "exact": method.exact, "nodes": len(truth), "circuit": int(truth.sum()),
               "refused": method.refuse(problem)}  # fmt: skip
        found, cost = None, None
        if row["refused"] is None:
            effects, cost = effects_of(method, problem)
            found = recovery(effects, truth, np.random.default_rng(seed))
        yield row | {
            "precision": found and found.precision,
            "precision_ci": found and found.precision_ci,
            "recall": found and found.precision,
            "unsigned": found and found.unsigned,
            "last": found and found.last,
            "random": random,
            "random_ci": random_ci,
            "cost": cost,
        }


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """What the reader must know of the table of recovery: for every method where it finds all, and where not."""
    notes = []
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [
            (f"{row['subject']} {row['mediator']}, {row['reference']}", row) for row in rows if row["method"] == name
        ]
        ran = [(case, row) for case, row in mine if row["refused"] is None]
        missed = [f"{case}: {row['precision']:.2f}" for case, row in ran if row["precision"] < 1]
        text = f"{name} finds the whole circuit in {len(ran) - len(missed)} of {len(ran)} cases"
        text += f"; not in {'; '.join(missed)}" if missed else ""
        reasons = dict.fromkeys(row["refused"] for _, row in mine if row["refused"] is not None)
        text += f"; refuses {len(mine) - len(ran)}: {'; '.join(reasons)}" if reasons else ""
        notes.append(text + ".")
    return notes


@study("planted", "precision and recall of every method on four subjects whose circuit is known")
def planted(setting: Setting) -> Outcome:
    """Quick: 32 pairs of inputs a subject, patched from the corrupt input. Full: 128, and with the mean as well."""
    subjects = planted_subjects(setting.work / "planted", 32 if setting.quick else 128, setting.seed)
    references: tuple[Reference, ...] = ("corrupt",) if setting.quick else ("corrupt", "mean")
    cases = [(subject, kind) for subject in subjects for kind in COMPONENTS]
    rows, circuits = [], []
    for subject, kind in setting.progress(cases, "planted circuits"):
        for reference in references:
            rows += recovery_rows(subject, kind, reference, setting.seed)
        circuits.append(circuit_row(subject, kind, setting.seed, N_CIRCUITS))
    edges, readouts = [], []
    for program in setting.progress(
        programs(setting.work / "programs", len(subjects[0].clean.ids), setting.seed), "programs"
    ):
        edges += edge_rows(program, setting.seed)
        readouts += readout_rows(program, 300 if setting.quick else 1_000, setting.seed)
    notes = (
        "As many nodes are taken as the circuit has, so precision and recall are one number.",
        *summary(rows),
        "Where a pattern of attention is saturated its slope is next to nothing, and where it is held fixed it is "
        "nothing: methods built on it there miss nodes that act through queries and keys, as the first head of copy.",
        "direct_logit_attribution sees what a node itself writes to the output: nodes that act through others are "
        "beyond it by design.",
        *edge_notes(edges),
        "Sufficiency and necessity are not clipped: a random circuit that cuts a chain midway leaves less of the "
        "metric than ablating all of it, since the last neuron at its mean gives a share of the metric by itself.",
    )
    return Outcome({"recovery": rows, "circuits": circuits, "program_edges": edges, "program_readout": readouts}, notes)
