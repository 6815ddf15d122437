"""Circuit-guided difficulty: does the circuit behind a prediction tell how hard that prediction is to edit?

A sample is a masked token that molm predicts right. Its difficulty is measured: the number of steps of gradient ascent
on the loss of what is predicted, of all weights of a copy, until another token is predicted. E is the set of the edges
between components with the largest |EAP-IG|, against mean activations. Anchors E_easy and E_hard are the edges in at
least half of the samples easiest and hardest to flip, of other molecules than those judged. J is the Jaccard index:

    CUD = ½ (1 + J(E, E_hard) − J(E, E_easy))

The idea is of circuit-guided unlearning difficulty, of which we know the published idea only; depth, path length and
this judgement are ours. Depth of an edge: the layer of its receiver. Path length: edges on a path from embedding to
output inside E. Beside them: probability and margin of the prediction, and frequencies of the token, which need no
circuit; random edges in place of E; and anchors of shuffled steps. Confidence is a strong opponent by construction: in
a logistic model of one sample x and margin m the flow of gradient ascent takes (m + exp m − 1) / |x|² to flip it.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.discovery.methods import METHODS, Problem
from isotrace.interventions.components import Values, mean_values
from isotrace.interventions.edges import ComponentGraph, Edges, component_graph
from isotrace.stats.bootstrap import group_weights, interval
from isotrace.stats.metrics import spearman
from isotrace.stats.share import share
from isotrace.studies.network import molecules
from isotrace.studies.study import Outcome, Setting, study
from isotrace.subjects.subject import Batch, Subject, load_subject
from isotrace.subjects.targets import parse_target
from isotrace.transfer.adapting.method import copied

SUBJECT = "bundled:molm"
RATE, N_EDGES, RUN, DRAWS, N_NULL, N_MEAN = 0.01, 50, 3, 1_000, 100, 64
"""Step of gradient ascent; edges of E the verdict is about; tokens of a fragment; bootstrap draws; draws of either
null; molecules whose activations are averaged."""
CONFIDENCE = "confidence"


@dataclass(frozen=True)
class Sizes:
    """Molecules that anchors are made of, and samples of each anchor; molecules judged; steps tried; edges of E;
    molecules that tokens are counted in."""

    pool: int
    anchor: int
    judged: int
    budget: int
    edges: tuple[int, ...]
    corpus: int


QUICK, FULL = Sizes(30, 10, 40, 100, (N_EDGES,), 300), Sizes(150, 50, 200, 300, (20, N_EDGES, 100, 200), 3_000)


@dataclass(frozen=True, eq=False)
class Samples:
    """One a molecule: `values [n, E]` EAP-IG of every edge; `steps [n]` until it flips, inf where it did not within the
    budget; `simple`: name → `[n]`, what needs no circuit."""

    values: np.ndarray
    steps: np.ndarray
    simple: dict[str, np.ndarray]


def jaccard(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[…]` of sets `[…, E]` bool; NaN where both are empty."""
    union = (a | b).sum(-1)
    return np.where(union > 0, (a & b).sum(-1) / np.maximum(union, 1), np.nan)


def largest(values: np.ndarray, n: int) -> np.ndarray:
    """`[n_samples, E]` bool: the `n` edges with the largest |value| of each sample. Raises InputError for more than
    there are."""
    if not 0 < n <= values.shape[1]:
        raise InputError(f"{n} of {values.shape[1]} edges: give at least 1 and at most all.")
    return np.argsort(np.argsort(-np.abs(values), 1, kind="stable"), 1) < n


def anchors(edges: np.ndarray, steps: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(E_easy, E_hard), `[E]` bool: the edges in half or more of the `n` samples with the fewest and the most steps; of
    equal ones those that come first, and last. Raises InputError where a sample would be in both."""
    if not 0 < 2 * n <= len(steps):
        raise InputError(f"{n} samples for either anchor, of {len(steps)}: give at most half of them.")
    order = np.argsort(steps, kind="stable")
    return edges[order[:n]].mean(0) >= 0.5, edges[order[-n:]].mean(0) >= 0.5


def difficulty(edges: np.ndarray, easy: np.ndarray, hard: np.ndarray) -> np.ndarray:
    """CUD `[n]`, between 0 and 1, of `edges [n, E]`. No sample shares anything with an empty anchor."""
    return (1 + jaccard(edges, hard) - jaccard(edges, easy)) / 2


def depths(graph: ComponentGraph, edges: np.ndarray) -> np.ndarray:
    """`[n]` mean layer of the receivers; that of the output is the number of layers."""
    layers = np.array([graph.components[v].layer for v in graph.edges[:, 1].tolist()])
    return edges @ layers / edges.sum(1)


def path_lengths(graph: ComponentGraph, edges: np.ndarray) -> np.ndarray:
    """`[n]` mean number of edges of all paths from embedding to output; NaN where there is none."""
    found = []
    for row in edges:
        ways, total = [1] + [0] * graph.output, [0] * (graph.output + 1)
        for u, v in graph.edges[torch.from_numpy(row)].tolist():  # by receiver, so that ways to u are complete
            ways[v] += ways[u]
            total[v] += total[u] + ways[u]
        found.append(total[-1] / ways[-1] if ways[-1] else math.nan)
    return np.array(found)


def steps_to_flip(logits: Callable[[], Tensor], weights: Sequence[Tensor], rate: float, budget: int) -> float:
    """Steps of `rate` times the gradient of −log p of the class predicted first, until `logits() [classes]` are largest
    for another; inf where `budget` steps do not get there. `weights` change."""
    said = None
    for step in range(budget + 1):
        found = logits()
        said = found.argmax() if said is None else said
        if found.argmax() != said:
            return step
        if step < budget:
            loss = torch.nn.functional.cross_entropy(found[None], said[None])
            for weight, slope in zip(weights, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
                if slope is not None:  # a weight that this prediction does not use
                    weight.data.add_(slope, alpha=rate)
    return math.inf


def flipped(subject: Subject, batch: Batch, place: int, budget: int) -> float:
    """`steps_to_flip` of what is predicted at `place` of a batch of one, all weights of a copy being free."""
    copy = copied(subject)
    weights = [*copy.model.requires_grad_(True).parameters()]
    at = copy.reading_position(place)
    return steps_to_flip(lambda: copy.head(copy.hidden(batch.ids, batch.mask)[0, at]), weights, RATE, budget)


def edge_values(subject: Subject, text: str, place: int, reference: Values) -> np.ndarray:
    """EAP-IG `[E]` of the token at `place`."""
    batch = subject.tokenize([text])
    target = parse_target(f"mask:{place}", subject, batch)
    metric = lambda b, final: target.value(subject, b, final)  # noqa: E731
    problem = Problem(subject, Edges(), target.prepare(subject, batch), metric, reference)
    return METHODS["edge_integrated_gradients"](problem).values[0].cpu().numpy()


def right_place(subject: Subject, batch: Batch, rng: np.random.Generator) -> tuple[int, Tensor] | None:
    """(place, logits `[vocabulary]`, float64) of the first token of a batch of one, in random order, that is predicted
    right; None if there is none."""
    for place in rng.permutation(np.flatnonzero(~subject.special(batch.ids[0]).cpu().numpy())).tolist():
        asked, at = subject.prepare_prediction(batch, place)
        logits = subject.head(subject.run(asked, logits=False).final[0, at]).double()
        if logits.argmax() == batch.ids[0, place]:
            return place, logits
    return None


def counted(subject: Subject, texts: Sequence[str]) -> Counter[tuple[int, ...]]:
    """How often every token, and every run of `RUN` tokens, stands in `texts`."""
    found = Counter[tuple[int, ...]]()
    for text in texts:
        ids = subject.tokenize([text]).ids[0].tolist()
        for n in (1, RUN):
            found.update(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))
    return found


def measured(
    subject: Subject, texts: Iterable[str], reference: Values, counts: Counter[tuple[int, ...]], budget: int, seed: int
) -> Samples:
    """A sample of each of `texts` of which a token is predicted right."""
    rng, values, steps, simple = np.random.default_rng((seed, 5)), [], [], []
    for text in texts:
        batch = subject.tokenize([text])
        if (found := right_place(subject, batch, rng)) is None:
            continue
        place, logits = found
        first, second = logits.topk(2).values.tolist()
        ids = batch.ids[0].tolist()
        around = tuple(ids[place - RUN // 2 : place + RUN // 2 + 1])
        simple.append((float(logits.softmax(-1).max()), first - second, counts[(ids[place],)], counts[around]))
        values.append(edge_values(subject, text, place, reference))
        steps.append(flipped(subject, subject.prepare_prediction(batch, place)[0], place, budget))
    names = (CONFIDENCE, "margin", "token frequency", "fragment frequency")
    columns: dict[str, np.ndarray] = dict(zip(names, np.array(simple, dtype=float).T, strict=True))
    return Samples(np.stack(values), np.array(steps), columns)


def told(name: str, n_edges: int | None, x: np.ndarray, judged: Samples, seed: int) -> dict[str, Any]:
    """Spearman of `x [n]` with the steps; what it has over confidence, paired; and what is left of it given confidence
    (partial correlation of ranks). Samples where `x` is NaN are left out of all three."""
    kept = np.isfinite(x)
    y, base, x = judged.steps[kept], judged.simple[CONFIDENCE][kept], x[kept]
    row: dict[str, Any] = {"predictor": name, "edges": n_edges, "samples": len(x)}
    parts = dict.fromkeys(("spearman", "gain", "partial"), np.full(DRAWS + 1, np.nan))
    if len(x):
        weights = group_weights([str(i) for i in range(len(x))], DRAWS, seed)
        own, other = (spearman(z[:, None], y, weights) for z in (x, base))
        both = spearman(x[:, None], base, weights)
        left = np.sqrt(np.maximum((1 - other**2) * (1 - both**2), 0))
        parts = {"spearman": own, "gain": own - other, "partial": share(own - other * both, left, 1e-9)}
    for part, draws in parts.items():
        row |= {part: float(draws[0]), f"{part}_ci": interval(draws[1:])}
    return row


def null(name: str, n_edges: int, found: Sequence[np.ndarray], judged: Samples) -> dict[str, Any]:
    """The mean, and the 95 % range, of Spearman over draws of CUD `[n]`; NaN where no draw varies."""
    one = np.ones((1, len(judged.steps)))
    draws = np.array([spearman(x[:, None], judged.steps, one)[0] for x in found])
    mean = float(np.nanmean(draws)) if np.isfinite(draws).any() else math.nan
    row = {"predictor": name, "edges": n_edges, "samples": len(judged.steps), "spearman": mean}
    return row | {"spearman_ci": interval(draws)} | dict.fromkeys(("gain", "gain_ci", "partial", "partial_ci"))


def judgement(
    graph: ComponentGraph, pool: Samples, judged: Samples, sizes: Sequence[int], n_anchor: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(a row a predictor of the steps of `judged`, a row a size of E on its anchors, which are of `pool`)."""
    rng, rows, about = np.random.default_rng((seed, 6)), [], []
    for n in sizes:
        edges, others = largest(judged.values, n), largest(pool.values, n)
        easy, hard = anchors(others, pool.steps, n_anchor)
        rows.append(told("CUD", n, difficulty(edges, easy, hard), judged, seed))
        drawn = [difficulty(largest(rng.random(edges.shape), n), easy, hard) for _ in range(N_NULL)]
        rows.append(null("CUD of random edges", n, drawn, judged))
        mixed = [anchors(others, rng.permutation(pool.steps), n_anchor) for _ in range(N_NULL)]
        rows.append(null("CUD of shuffled anchors", n, [difficulty(edges, *pair) for pair in mixed], judged))
        rows.append(told("mean depth", n, depths(graph, edges), judged, seed))
        rows.append(told("mean path length", n, path_lengths(graph, edges), judged, seed))
        shared = float(jaccard(easy, hard))
        about.append({"edges": n, "easy": int(easy.sum()), "hard": int(hard.sum()), "jaccard": shared})
    rows += [told(name, None, x, judged, seed) for name, x in judged.simple.items()]
    return rows, about


def step_rows(parts: dict[str, Samples]) -> list[dict[str, Any]]:
    """Quartiles of the steps of each part; None where a quartile was not reached."""
    rows = []
    for name, samples in parts.items():
        quartiles = np.quantile(samples.steps, (0.25, 0.5, 0.75), method="higher").tolist()
        told = [q if math.isfinite(q) else None for q in quartiles]
        row = {"samples of": name, "samples": len(samples.steps), "unflipped": int(np.isinf(samples.steps).sum())}
        rows.append(row | dict(zip(("lower quartile", "median", "upper quartile"), told, strict=True)))
    return rows


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """CUD against confidence, as numbers."""
    cud = next(row for row in rows if row["predictor"] == "CUD" and row["edges"] == N_EDGES)
    base = next(row for row in rows if row["predictor"] == CONFIDENCE)
    low, high = cud["gain_ci"]
    better = "CUD is better" if low > 0 else "confidence is better" if high < 0 else "neither is shown to be better"
    asked = ((cud, "spearman"), (base, "spearman"), (cud, "gain"), (cud, "partial"))
    said = [f"{row[p]:.2f} [{row[f'{p}_ci'][0]:.2f}, {row[f'{p}_ci'][1]:.2f}]" for row, p in asked]
    return (
        f"Spearman with the steps, {cud['samples']} samples: CUD of {N_EDGES} edges {said[0]}, confidence {said[1]}, "
        f"CUD less confidence {said[2]}: {better}. Given confidence, CUD has {said[3]}."
    )


@study("circuit_difficulty", "molm: does the circuit of a prediction tell how hard it is to edit? Against confidence")
def circuit_difficulty(setting: Setting) -> Outcome:
    sizes = QUICK if setting.quick else FULL
    subject = load_subject(SUBJECT)
    corpus = molecules(subject, sizes.corpus, setting.seed, "train")
    reference = mean_values(subject, Edges(), [subject.tokenize([text]) for text in corpus[:N_MEAN]])
    counts, parts = counted(subject, corpus), {}
    for name, texts in (
        ("anchors", corpus[: sizes.pool]), ("judged", molecules(subject, sizes.judged, setting.seed, "test"))
    ):  # fmt: skip
        shown = setting.progress(texts, f"edges and steps: {name}")
        parts[name] = measured(subject, shown, reference, counts, sizes.budget, setting.seed)
    pool, judged = parts["anchors"], parts["judged"]
    rows, about = judgement(component_graph(subject), pool, judged, sizes.edges, sizes.anchor, setting.seed)
    gone = sum(int(np.isinf(part.steps).sum()) for part in parts.values())
    notes = (
        verdict(rows),
        f"{gone} samples did not flip in {sizes.budget} steps of {RATE}: they count as hardest, and as equally hard.",
        f"Anchors: {sizes.anchor} samples each, of other scaffolds than those judged. Intervals are over judged "
        "molecules with these anchors; those of random edges and shuffled anchors are over draws.",
        "gain: over confidence, paired. partial: given confidence, NaN for confidence itself. Frequencies are of the "
        "training scaffolds of bbb, which stand in for the corpus of molm.",
    )
    return Outcome({"predictors": rows, "anchors": about, "steps": step_rows(parts)}, notes)
