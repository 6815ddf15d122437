"""Edge methods: what path patching, its approximations and ACDC find, how long they take, and which circuit they give.

Task: a masked token of a drug-like molecule, with another molecule of as many tokens, masked at the same place, as
the corrupt input. A pair counts if the subject predicts the token from the first molecule and not from the second:
logit of the token minus the mean logit. Discovery pairs are of the training scaffolds, reporting pairs of the test
scaffolds. A circuit of n edges keeps the n with the largest |mean value|, or, as a variant, the largest mean value;
all other edges carry the corrupt input. Faithfulness is (M(C) − M(∅)) / (M(x) − M(∅)), of means over pairs. The area
under it, and that between it and 1 (called CPR and CMD by Mueller et al. 2025, arXiv:2504.13151), are over log n.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from isotrace.discovery.edges.circuits import kept
from isotrace.discovery.methods import METHODS, Problem
from isotrace.interventions.edges import Edges, component_graph
from isotrace.stats.bootstrap import bootstrap_weights, interval, mean_interval
from isotrace.stats.share import share
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import Subject, load_subject
from isotrace.subjects.targets import parse_target

SOURCE = "bundled:molm"
EXACT, FAST = "path_patching", ("edge_attribution_patching", "edge_integrated_gradients")
RANDOM_DRAWS, BOOTSTRAP = 3, 1_000


@dataclass(frozen=True)
class Sizes:
    """Pairs to rank edges on, to report on, and to run ACDC on; the longest molecule, in tokens."""

    discovery: int
    report: int
    acdc: int
    max_tokens: int


QUICK, FULL = Sizes(12, 32, 2, 32), Sizes(64, 256, 8, 64)


def pairs(subject: Subject, split: str, n: int, max_tokens: int, seed: int) -> list[Problem]:
    """At most `n` problems with the mediator edge, of one pair each; every molecule is in at most one of them."""
    return list(islice(_pairs(subject, split, max_tokens, seed), n))


def _pairs(subject: Subject, split: str, max_tokens: int, seed: int) -> Iterator[Problem]:
    table = bundled_table("bbb")
    rng = np.random.default_rng(seed)
    waiting: dict[int, list[str]] = defaultdict(list)
    for text in rng.permutation(table["smiles"].filter(table["split_scaffold"] == split).to_numpy()):
        if len(subject.tokenizer(text)["input_ids"]) <= min(max_tokens, subject.max_tokens):
            batch = subject.tokenize([text])
            others = waiting[batch.ids.shape[1]]
            if others and (problem := _problem(subject, text, others[-1], rng)):
                others.pop()
                yield problem
            else:
                others.append(text)


def _problem(subject: Subject, clean: str, corrupt: str, rng: np.random.Generator) -> Problem | None:
    """At the first place, in random order, where the subject tells the two apart; None if there is no such place."""
    batch, other = subject.tokenize([clean]), subject.tokenize([corrupt])
    for position in rng.permutation(torch.nonzero(batch.ids[0] != other.ids[0])[:, 0].numpy()).tolist():
        target = parse_target(f"mask:{position}", subject, batch)
        hidden = clean_batch, corrupt_batch = target.prepare(subject, batch), target.prepare(subject, other)
        found = [int(subject.head(subject.run(b, logits=False).final[0, position]).argmax()) for b in hidden]
        if found[0] == target.positive != found[1]:
            metric = lambda b, final, target=target: target.value(subject, b, final)  # noqa: E731
            return Problem.interchange(subject, Edges(), clean_batch, corrupt_batch, metric)
    return None


def sizes_on(n_edges: int) -> list[int]:
    """1, 2, 5, 10, … and all edges."""
    grid = [step * 10**power for power in range(6) for step in (1, 2, 5)]
    return [n for n in grid if n < n_edges] + [n_edges]


def first_edges(values: Tensor, sizes: list[int]) -> Tensor:
    """`[sizes, E]` bool: the edges with the largest `values [E]`."""
    rank = values.argsort(descending=True, stable=True).argsort()
    return rank[None] < torch.tensor(sizes)[:, None]


def faithfulness(metric: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`[draws, sizes − 1]` from M `[pairs, sizes]` with no edge first and all edges last, and weights
    `[draws, pairs]` of the pairs; NaN where all edges change no more than float32 rounds."""
    means = weights @ metric
    return share(means[:, 1:] - means[:, :1], means[:, -1:] - means[:, :1], 1e-6 * np.abs(means[:, -1:]))


def areas(curves: np.ndarray, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """(area under the curve, area between it and 1) of `[draws, sizes]` over log n scaled to 1, `[draws]` each."""
    x = np.log(sizes) / np.log(sizes[-1])
    return np.trapezoid(curves, x), np.trapezoid(np.abs(1 - curves), x)


def timed(name: str, problem: Problem) -> tuple[Any, float]:
    started = time.perf_counter()
    found = METHODS[name](problem)
    return found, time.perf_counter() - started


@study("edge_methods", "edge attribution patching and ACDC against path patching: time and faithfulness")
def edge_methods(setting: Setting) -> Outcome:
    sizes = QUICK if setting.quick else FULL
    subject = load_subject(SOURCE)
    graph = component_graph(subject)
    discovery = pairs(subject, "train", sizes.discovery, sizes.max_tokens, setting.seed)
    reporting = pairs(subject, "test", sizes.report, sizes.max_tokens, setting.seed + 1)
    scores: dict[str, list[Any]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    for name in (EXACT, *FAST):
        METHODS[name](discovery[0])  # nothing is timed cold
    for problem in setting.progress(discovery, "ranking edges"):
        for name in (EXACT, *FAST):
            found, spent = timed(name, problem)
            scores[name].append(found)
            seconds[name].append(spent)
    for problem in setting.progress(discovery[: sizes.acdc], "ACDC"):
        found, spent = timed("acdc", problem)
        scores["acdc"].append(found)
        seconds["acdc"].append(spent)
    values = {name: torch.cat([s.values for s in found]) for name, found in scores.items()}  # [pairs, E]
    rankings: dict[tuple[str, str], Tensor] = {}
    for name, table in values.items():
        rankings[name, "|value|"] = table.mean(0).abs()
        rankings[name, "value"] = table.mean(0)
    generator = torch.Generator().manual_seed(setting.seed)
    for draw in range(RANDOM_DRAWS):
        rankings[f"random {draw}", "order"] = torch.rand(len(graph.edges), generator=generator)
    grid = sizes_on(len(graph.edges))
    metric: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for problem in setting.progress(reporting, "circuits of kept edges"):
        keep = torch.cat([first_edges(ranking, [0, *grid]) for ranking in rankings.values()])
        found = kept(problem, keep)[:, 0].split(len(grid) + 1)
        for key, row in zip(rankings, found, strict=True):
            metric[key].append(row)
    arrays = {key: torch.stack(rows).double().numpy() for key, rows in metric.items()}
    tables = {
        "time": _times(scores, seconds),
        "agreement": _agreement(values, setting.seed),
        "faithfulness": _curves(arrays, grid, setting.seed),
    }
    return Outcome(tables, _notes(tables, graph.n_senders, len(graph.edges), len(discovery), len(reporting), sizes))


def _times(scores: dict[str, list[Any]], seconds: dict[str, list[float]]) -> list[dict[str, Any]]:
    rows = []
    for name, found in scores.items():
        spent = np.array(seconds[name])
        ratio = np.array(seconds[EXACT])[: len(spent)] / spent
        rows.append({
            "method": name, "pairs": len(spent), "seconds": float(np.median(spent)),
            "seconds_range": [float(spent.min()), float(spent.max())],
            "times_faster": float(np.median(ratio)), "times_faster_range": [float(ratio.min()), float(ratio.max())],
            "forward_equivalents": float(np.mean([s.cost for s in found])),
        })  # fmt: skip
    return rows


def _agreement(values: dict[str, Tensor], seed: int) -> list[dict[str, Any]]:
    """Correlation over edges with path patching, per pair; the null shuffles the edges."""
    rng, rows = np.random.default_rng(seed), []
    for name, table in values.items():
        if name == EXACT:
            continue
        exact, found = values[EXACT][: len(table)].double().numpy(), table.double().numpy()
        measures = {"pearson": lambda a, b: np.corrcoef(a, b)[0, 1], "spearman": lambda a, b: spearmanr(a, b)[0]}
        row: dict[str, Any] = {"method": name, "pairs": len(table)}
        for measure, correlate in measures.items():
            each = np.array([correlate(a, b) for a, b in zip(exact, found, strict=True)])
            null = np.array([correlate(a, rng.permutation(b)) for a, b in zip(exact, found, strict=True)])
            row |= {measure: float(each.mean()), f"{measure}_ci": mean_interval(each, seed, BOOTSTRAP)}
            row |= {
                f"{measure}_null": float(null.mean()),
                f"{measure}_of_means": float(correlate(exact.mean(0), found.mean(0))),
            }
        rows.append(row)
    return rows


def _curves(arrays: dict[tuple[str, str], np.ndarray], grid: list[int], seed: int) -> list[dict[str, Any]]:
    """A row for each ranking. The interval of an area is over pairs; `less_exact` is the area minus that of path
    patching ranked the same way, on the same draws of pairs. Random rankings are one row, over draws of the order."""
    n = len(next(iter(arrays.values())))
    weights = bootstrap_weights(n, BOOTSTRAP, seed) / n
    all_pairs, rows, chance = np.full((1, n), 1 / n), [], []
    for (name, by), metric in arrays.items():
        curve = faithfulness(metric, all_pairs)
        area, distance = areas(curve, grid)
        if name.startswith("random"):
            chance.append((curve[0], area[0], distance[0]))
            continue
        draws = areas(faithfulness(metric, weights), grid)
        exact = [areas(faithfulness(arrays[EXACT, by], w), grid) for w in (all_pairs, weights)]
        row = {"method": name, "by": by, "area": float(area[0]), "area_ci": interval(draws[0])}
        row |= {"distance": float(distance[0]), "distance_ci": interval(draws[1])}
        row |= {"area_gain": float(area[0] - exact[0][0][0]), "area_gain_ci": interval(draws[0] - exact[1][0])}
        row |= {"distance_gain": float(exact[0][1][0] - distance[0])}
        row |= {"distance_gain_ci": interval(exact[1][1] - draws[1])}
        rows.append(row | _points(curve[0], grid))
    curves, found, distances = (np.array(part) for part in zip(*chance, strict=True))
    row = {"method": f"random ({len(found)} orders)", "by": "order", "area": float(found.mean())}
    row |= {"area_ci": [float(found.min()), float(found.max())], "distance": float(distances.mean())}
    row |= {"distance_ci": [float(distances.min()), float(distances.max())]}
    row |= dict.fromkeys(("area_gain", "area_gain_ci", "distance_gain", "distance_gain_ci"))
    return [*rows, row | _points(curves.mean(0), grid)]


def _points(curve: np.ndarray, grid: list[int]) -> dict[str, Any]:
    points: dict[str, Any] = {"smallest_80": next(n for n, f in zip(grid, curve, strict=True) if f >= 0.8)}
    return points | {f"n={n}": float(f) for n, f in zip(grid, curve, strict=True)}


def _notes(
    tables: dict[str, Any], senders: int, edges: int, found: int, reported: int, sizes: Sizes
) -> tuple[str, ...]:
    times = {row["method"]: row for row in tables["time"]}
    notes = [
        f"{SOURCE}: {senders} senders and {edges} edges; {found} pairs for discovery, {reported} held out, of at most "
        f"{sizes.max_tokens} tokens.",
        f"ACDC, which takes many runs, had {sizes.acdc} of the discovery pairs; the edges it cut have no order.",
        "seconds were taken in turns in one process, pair by pair. Path patching runs all layers for every edge; those "
        "before the receiver could be left out, which would save it about two thirds.",
        "intervals are over held-out pairs, with the ranking given; that of random orders is their range.",
    ]
    for name in FAST:
        least = times[name]["times_faster_range"][0]
        notes.append(
            f"{name}: {times[name]['times_faster']:.0f} times faster than path patching, at least {least:.1f}."
        )
    for row in tables["faithfulness"]:
        if row["method"] in FAST:
            gain, ci = row["distance_gain"], row["distance_gain_ci"]
            verdict = "better" if ci[0] > 0 else "worse" if ci[1] < 0 else "neither better nor worse"
            notes.append(
                f"{row['method']} by {row['by']}: its circuits are {verdict} than path patching's; distance from "
                f"full faithfulness {row['distance']:.3f}, smaller by {gain:.3f} [{ci[0]:.3f}, {ci[1]:.3f}]."
            )
    return tuple(notes)
