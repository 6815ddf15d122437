"""Recall against reasoning: are there heads that one of two families of predictions needs and the other does not?

recall     an atom inside a run of five tokens that is frequent in the molecules read
reasoning  a ring digit or a bracket that closes: what stands there has to be computed from what stands far before

Samples go in pairs of one of each, as long in tokens and as sure (their probability within MATCH). On half of the
molecules heads are ranked by interchange: what one family loses more than the other where a head's output is that on
the other sample of the pair. On the other half the first m are removed together, their outputs set to 0. Selective
impairment = fall of the own family's probability − fall of the other's, beside as many heads drawn at random.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from isotrace.interventions import Heads, Intervention, Plan, Select, Set, To
from isotrace.stats.bootstrap import group_weights, interval
from isotrace.studies.difficulty.execution_gap import CLOSES, places
from isotrace.studies.network import molecules
from isotrace.studies.study import Outcome, Setting, study
from isotrace.subjects.subject import Batch, Subject, load_subject

SUBJECT = "bundled:molm"
FAMILIES = ("recall", "reasoning")
WINDOW, FREQUENT, MATCH, DRAWS = 5, 0.02, 0.1, 1_000
"""Tokens of a run; share of the runs that count as frequent, the most frequent first; largest difference of probability
in a pair; bootstrap draws."""
Node = tuple[int, int]
"""(layer, head)."""


@dataclass(frozen=True)
class Sample:
    """`text` with the token at `place` masked; `chance` of the right one, `target`."""

    text: str
    place: int
    target: int
    chance: float
    molecule: int


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of one length: `batches` of either family `[n, tokens]`, masked, `places` and `targets [2, n]`, `molecules
    [n]`, those of the first family."""

    batches: tuple[Batch, Batch]
    places: np.ndarray
    targets: np.ndarray
    molecules: np.ndarray

    @classmethod
    def of(cls, subject: Subject, pairs: Sequence[tuple[Sample, Sample]]) -> "Pairs":
        batches, mask = [], cast(int, subject.mask_id)
        for side in (0, 1):
            batch = subject.tokenize([pair[side].text for pair in pairs])
            batch.ids[torch.arange(len(pairs)), [pair[side].place for pair in pairs]] = mask
            batches.append(batch)
        where, target = (np.asarray([[getattr(p[s], of) for p in pairs] for s in (0, 1)]) for of in ("place", "target"))
        return cls((batches[0], batches[1]), where, target, np.asarray([pair[0].molecule for pair in pairs]))


@torch.no_grad()
def chances(subject: Subject, pairs: Pairs, nodes: Sequence[Node] = (), exchange: bool = False) -> np.ndarray:
    """float64 `[2, n]`: probability of the right token of either family, `nodes` at 0, or as on the other sample."""
    found = []
    for side in (0, 1):
        what = To.other(subject, Heads(), pairs.batches[1 - side]) if exchange else Set(0.0)
        plan = Plan.of(*(Intervention(Heads(), what, Select((layer,), (head,))) for layer, head in nodes))
        logits = cast(Tensor, subject.run(pairs.batches[side], plan=plan).logits)
        odds = logits[torch.arange(len(logits)), torch.from_numpy(pairs.places[side])].double().softmax(-1)
        found.append(odds[torch.arange(len(odds)), torch.from_numpy(pairs.targets[side])].cpu().numpy())
    return np.stack(found)


def known(subject: Subject, every: Sequence[Pairs], nodes: Sequence[Node] = (), exchange: bool = False) -> np.ndarray:
    """`chances` of all pairs `[2, pairs]`."""
    return np.concatenate([chances(subject, pairs, nodes, exchange) for pairs in every], 1)


def heads(subject: Subject) -> list[Node]:
    return [(layer, head) for layer in range(subject.n_layers) for head in range(subject.n_heads(layer))]


def ranked(subject: Subject, every: Sequence[Pairs], progress: Any) -> dict[int, list[Node]]:
    """Of each family: the heads, those first that it loses most by beyond what the other does."""
    nodes = heads(subject)
    clean = known(subject, every)
    changed = [known(subject, every, [node], exchange=True) for node in progress(nodes, "heads, one by one")]
    means = np.asarray([(clean - one).mean(1) for one in changed])
    return {own: [nodes[i] for i in np.argsort(-(means[:, own] - means[:, 1 - own]))] for own in (0, 1)}


def impairment(
    subject: Subject, every: Sequence[Pairs], own: int, first: Sequence[Node], n_random: int, seed: int, progress: Any
) -> dict[str, Any]:
    """Of the family `own` without the heads `first`, beside `n_random` sets of as many; intervals over molecules."""
    groups = np.concatenate([pairs.molecules for pairs in every])
    weights = group_weights([str(g) for g in groups], DRAWS, seed)
    weights = weights / weights.sum(1, keepdims=True)
    nodes = heads(subject)
    rng, row = np.random.default_rng((seed, 3)), dict[str, Any]()
    clean = known(subject, every)
    fall = clean - known(subject, every, first)
    for name, values in (("own", fall[own]), ("other", fall[1 - own]), ("selective", fall[own] - fall[1 - own])):
        draws = weights @ values
        row |= {name: float(draws[0]), f"{name}_ci": interval(draws[1:])}
    sets = [[nodes[i] for i in rng.permutation(len(nodes))[: len(first)]] for _ in range(n_random)]
    drawn = [clean - known(subject, every, some) for some in progress(sets, "heads at random")]
    null = np.asarray([float((one[own] - one[1 - own]).mean()) for one in drawn])
    p = (1 + (null >= row["selective"]).sum()) / (1 + len(null))
    return row | {"random": float(null.mean()), "random_largest": float(null.max()), "p": float(p)}


def samples(subject: Subject, texts: Sequence[str]) -> tuple[list[Sample], list[Sample]]:
    """Of either family, with their probability; every place of `texts` that belongs to one."""
    runs, read = Counter[tuple[str, ...]](), []
    for text in texts:
        batch = subject.tokenize([text])
        tokens = subject.tokens(batch.ids[0])
        read.append((batch, tokens))
        runs.update({tuple(tokens[i : i + WINDOW]) for i in range(1, len(tokens) - WINDOW)})
    often = {run for run, _ in runs.most_common(max(1, int(FREQUENT * len(runs))))}
    found: tuple[list[Sample], list[Sample]] = ([], [])
    for molecule, (text, (batch, tokens)) in enumerate(zip(texts, read, strict=True)):
        closing = {place for place, _ in places(subject, batch, CLOSES)} | {i for i, t in enumerate(tokens) if t == ")"}
        half = WINDOW // 2
        inside = {
            i for i in range(1 + half, len(tokens) - 1 - half)
            if tokens[i].isalpha() and tuple(tokens[i - half : i + half + 1]) in often
        }  # fmt: skip
        for family, sites in enumerate((sorted(inside), sorted(closing))):
            if sites:
                own = [Sample(text, i, int(batch.ids[0, i]), 0.0, molecule) for i in sites]
                odds = chances(subject, Pairs.of(subject, [(one, one) for one in own]))[0]
                found[family].extend(replace(one, chance=float(p)) for one, p in zip(own, odds, strict=True))
    return found


def paired(
    subject: Subject, recall: Sequence[Sample], reasoning: Sequence[Sample], seed: int, most: int
) -> tuple[list[Pairs], int]:
    """(pairs by length, how many): each sample once, of different molecules, in random order, at most `most`."""
    rng, length = np.random.default_rng((seed, 4)), dict[str, int]()
    for sample in (*recall, *reasoning):
        if sample.text not in length:
            length[sample.text] = subject.tokenize([sample.text]).ids.shape[1]
    free: dict[int, list[Sample]] = defaultdict(list)
    for i in rng.permutation(len(reasoning)):
        free[length[reasoning[i].text]].append(reasoning[i])
    made: dict[int, list[tuple[Sample, Sample]]] = defaultdict(list)
    total = 0
    for i in rng.permutation(len(recall)):
        one, others = recall[i], free[length[recall[i].text]]
        fit = next((z for z in others if z.molecule != one.molecule and abs(z.chance - one.chance) <= MATCH), None)
        if fit is not None and total < most:
            others.remove(fit)
            made[length[one.text]].append((one, fit))
            total += 1
    return [Pairs.of(subject, pairs) for _, pairs in sorted(made.items())], total


@study(
    "recall_reasoning", "molm: heads that frequent fragments need and closing brackets and rings do not, or the reverse"
)
def recall_reasoning(setting: Setting) -> Outcome:
    n, most, n_random, sizes = (80, 60, 4, (2,)) if setting.quick else (780, 600, 19, (1, 2, 4, 8))
    subject = load_subject(SUBJECT)
    recall, reasoning = samples(subject, molecules(subject, n, setting.seed))
    cut, asked = n // 2, {"seed": setting.seed, "most": most}
    (discover, n_discover), (report, n_report) = (
        paired(
            subject,
            [s for s in recall if (s.molecule < cut) == first],
            [s for s in reasoning if (s.molecule < cut) == first],
            **asked,
        )
        for first in (True, False)
    )
    order, rows = ranked(subject, discover, setting.progress), []
    clean = known(subject, report).mean(1)
    for own, family in enumerate(FAMILIES):
        for size in sizes:
            first = order[own][:size]
            told = impairment(subject, report, own, first, n_random, setting.seed, setting.progress)
            named = ", ".join(f"{layer}.{head}" for layer, head in first)
            rows.append({"family": family, "heads": size, "chance": float(clean[own]), **told, "which": named})
    notes = (
        f"{n_discover} pairs of half of the molecules rank the heads, {n_report} of the other half are told.",
        "own, other: fall of the probability of the right token. Heads are ranked by interchange and removed at 0.",
    )
    return Outcome({"impairment": rows}, notes)
