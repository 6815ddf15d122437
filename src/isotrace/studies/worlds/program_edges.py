"""How well every method of discovery tells a program's edges from all others: AUROC over edges of |mean score|.

A method that ranks edges is taken as it is. One that ranks nodes gives an edge the smaller of its two ends' |mean
score|, the output being above all: what nodes alone say of edges, the bar for methods of edges.

`readout_rows`: whether the program read out of a circuit (see `program_readout`) is the one that was written.
"""

from collections.abc import Iterator
from statistics import mean
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata

from isotrace.discovery.method import METHODS, Method, Problem
from isotrace.interventions.edges import component_graph
from isotrace.stats.bootstrap import bootstrap_weights, interval, mean_interval
from isotrace.studies.worlds.planted_problems import RESOLUTION, effects_of, problem_of, truth_of
from isotrace.studies.worlds.program_readout import read_out
from isotrace.studies.worlds.programs import Program, compiled, words

N_DRAWS, N_RANDOM = 500, 500


def edge_rows(program: Program, seed: int) -> Iterator[dict[str, Any]]:
    """A row for every method; of one that refuses, why. `random`: 95 % of random orders lie in `random_ci`."""
    planted, rng = program.planted, np.random.default_rng(seed)
    problem, truth = problem_of(planted, "edge", "corrupt"), truth_of(planted, "edge").numpy()
    random = aurocs(rng.random((N_RANDOM, len(truth))), truth)
    for method in METHODS.values():
        row = {"program": planted.name, "method": method.name, "ranks": method.ranks, "edges": len(truth),
               "circuit": int(truth.sum()), "refused": method.refuse(problem),
               "auroc": None, "auroc_ci": None}  # fmt: skip
        if row["refused"] is None:
            effects = effects_of(method, problem)[0]
            draws = np.concatenate([np.ones((1, len(effects))), bootstrap_weights(len(effects), N_DRAWS, rng)])
            found = aurocs(edge_scores(method, problem, draws @ effects / len(effects)), truth)
            row |= {"auroc": float(found[0]), "auroc_ci": interval(found[1:])}
        yield row | {"random": float(random.mean()), "random_ci": interval(random)}


def edge_scores(method: Method, problem: Problem, means: np.ndarray) -> np.ndarray:
    """`[draws, edges]` of mean scores `[draws, edges or senders]`; what is below `RESOLUTION` of the largest is 0."""
    found = np.abs(means)
    if method.ranks == "node":
        ends = np.concatenate([found, np.full((len(found), 1), np.inf)], 1)
        found = ends[:, component_graph(problem.subject).edges.numpy()].min(-1)
    return np.where(found < RESOLUTION * found.max(1, keepdims=True), 0.0, found)


def aurocs(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """`[draws]` of `scores [draws, n]` for `truth [n]` bool; ties count one half."""
    n, ranks = int(truth.sum()), rankdata(scores, axis=1)
    return (ranks[:, truth].sum(1) - n * (n + 1) / 2) / (n * (len(truth) - n))


READ = ("path_patching", "edge_attribution_patching")
N_INPUTS, N_CIRCUITS = 1_000, 3


def readout_rows(program: Program, n_fit: int, seed: int) -> Iterator[dict[str, Any]]:
    """Agreement on `N_INPUTS` inputs with the program, of what is read out of its own edges, of as many edges that a
    method ranks first, and of random ones. `majority`: share of the commonest answer. `unseen`: of the inputs."""
    planted, rng = program.planted, np.random.default_rng(seed)
    problem, truth = problem_of(planted, "edge", "corrupt"), truth_of(planted, "edge").numpy()
    circuits = {"program": [truth]}
    for name in READ:
        scores = edge_scores(METHODS[name], problem, effects_of(METHODS[name], problem)[0].mean(0, keepdims=True))[0]
        circuits[name] = [np.isin(np.arange(len(truth)), np.lexsort((truth, -scores))[: truth.sum()])]
    circuits["random"] = [rng.permutation(truth) for _ in range(N_CIRCUITS)]
    fit = program.inputs(n_fit, seed + 1)
    batch = planted.subject.tokenize(program.inputs(N_INPUTS, seed + 2))
    said, tokens, graph = program.said(batch), words(planted.subject, batch), component_graph(planted.subject)
    for name, chosen in circuits.items():
        agree, unseen, lines = [], [], []
        for keep in chosen:
            edges = [
                (graph.components[u], graph.components[v]) for u, v in graph.edges[torch.from_numpy(keep)].tolist()
            ]
            text = read_out(program, edges, fit)
            got = [run(words) for run in [compiled(text)] for words in tokens]
            agree.append([a == b for a, b in zip(got, said, strict=True)])
            unseen.append(got.count("?") / len(got))
            lines.append(text.count("\n"))
        each = np.mean(agree, 0)
        yield {"program": planted.name, "circuit": name, "agreement": float(each.mean()),
               "agreement_ci": mean_interval(each, seed), "unseen": mean(unseen), "lines": mean(lines),
               "majority": max(said.count(a) for a in set(said)) / len(said)}  # fmt: skip


def edge_notes(rows: list[dict[str, Any]]) -> list[str]:
    """For every method its lowest AUROC over the programs, and on which."""
    notes = []
    for name in dict.fromkeys(row["method"] for row in rows):
        found = [row for row in rows if row["method"] == name and row["auroc"] is not None]
        if not found:
            reason = next(row["refused"] for row in rows if row["method"] == name)
            notes.append(f"{name} says nothing of the programs' edges: {reason}.")
            continue
        low = min(found, key=lambda row: row["auroc"])
        notes.append(
            f"{name}: AUROC of a program's edges {mean(row['auroc'] for row in found):.2f} on average, lowest "
            f"{low['auroc']:.2f} ({low['program']}); all edges first in "
            f"{sum(row['auroc'] == 1 for row in found)} of {len(found)}."
        )
    return notes
