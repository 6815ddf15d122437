"""One feature in its connections: what it reads at its own token, what it follows at others, what it writes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isotrace.attribution.weights.contributions import contributions, shares
from isotrace.attribution.weights.global_edges import blocks
from isotrace.attribution.weights.measured import Edge, Measured, measured, sent
from isotrace.attribution.weights.record import Recordings
from isotrace.attribution.weights.routes import Reads, Route, routes, written
from isotrace.attribution.weights.segments import Place
from isotrace.attribution.weights.tokens import de_embedding, un_embedding
from isotrace.base.errors import InputError, SubjectError
from isotrace.domains.domain import domain_of

SHOWN = 12
"""Features and tokens of each relation."""
CANDIDATES = 4
"""Times as many edges of a feature's own writes are judged against their nulls."""


@dataclass(frozen=True, eq=False)
class Connections:
    """`rows`: see docs/features.md. `shares`: of each term in the variance of the pre-activation. `classes`: what
    tokens of each kind give by themselves. `warnings`: what could not be said, and why."""

    rows: list[dict[str, Any]]
    shares: dict[str, float]
    classes: list[dict[str, Any]]
    warnings: list[str]


@dataclass(frozen=True)
class Null:
    """`threshold`: see `Block`. `p`: see `Block.chance`."""

    threshold: float
    p: float


def connections(
    recordings: Recordings, slot: int, feature: int, *, shown: int = SHOWN, permutations: int = 10, seed: int = 0
) -> Connections:
    """Of a feature of a layer of the dictionary. Raises InputError for one that never fires in the sequences."""
    layers = recordings.segments.dictionary.config.layers
    if float(recordings.total[slot, feature]) == 0:
        raise InputError(
            f"feature {layers[slot]}.{feature} never fires in these {recordings.n_sequences} sequences: give others, "
            "or more of them, with --data."
        )
    reads = Reads(recordings.segments, slot, torch.tensor([feature], device=recordings.segments.device))
    judge: dict[str, Any] = {"permutations": permutations, "seed": seed}
    rows = [*_read(recordings, reads, shown, judge), *_words(recordings, reads, shown, judge)]
    rows += _written(recordings, slot, feature, shown, judge)
    warnings = []
    try:
        rows += _promoted(recordings, slot, feature, shown)
    except SubjectError as error:
        warnings.append(str(error))
    found = [contributions(recordings, reads, rows_of, batch) for rows_of, batch in recordings.batches]
    share = {name: float(values[0]) for name, values in shares(found).items()}
    return Connections(rows, share, _classes(recordings, reads, found), warnings)


def _read(recordings: Recordings, reads: Reads, shown: int, judge: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Features that this one reads at its own token, and those it follows, through a head."""
    best: dict[str, list[tuple[float, Null, Edge]]] = {"reads": [], "follows": []}
    for block in blocks(recordings, reads.slot, reads.features, **judge):
        relation = "follows" if block.route and block.route[0].kind == "head" else "reads"
        values = block.value[:, 0].nan_to_num().double().cpu().numpy()
        for i in _largest(values, shown):
            edge = Edge((block.source, i), block.route, 0)
            best[relation].append((float(values[i]), Null(float(block.threshold[0]), block.chance(i, 0)), edge))
    for relation, some in best.items():
        some = sorted(some, key=lambda one: -abs(one[0]))[:shown]
        looked = measured(recordings, reads, [edge for *_, edge in some], seed=judge["seed"])
        for (_, null, edge), one in zip(some, looked, strict=True):
            yield _edge_row(recordings, relation, edge.source, edge.route, null, one)


def _written(
    recordings: Recordings, slot: int, feature: int, shown: int, judge: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Features of later layers that read this one; each is judged against its own null."""
    sizes = []
    for (to, route), values in sent(recordings, slot, feature).items():
        values = values.nan_to_num().double().cpu().numpy()
        sizes += [(abs(float(values[j])), to, route, j) for j in _largest(values, CANDIDATES * shown)]
    sizes = sorted(sizes, key=lambda one: -one[0])[:shown]
    for to in sorted({to for _, to, _, _ in sizes}):
        own = [(route, j) for _, other, route, j in sizes if other == to]
        columns = sorted({j for _, j in own})
        reads = Reads(recordings.segments, to, torch.tensor(columns, device=recordings.segments.device))
        ways = list(dict.fromkeys(route for route, _ in own))
        nulls = {
            (block.route, j): Null(float(block.threshold[k]), block.chance(feature, k))
            for block in blocks(recordings, to, reads.features, ways, **judge)
            if block.source == slot
            for k, j in enumerate(columns)
        }
        edges = [Edge((slot, feature), route, columns.index(j)) for route, j in own]
        for (route, j), one in zip(own, measured(recordings, reads, edges, seed=judge["seed"]), strict=True):
            yield _edge_row(recordings, "writes", (to, j), route, nulls[route, j], one)


def _edge_row(
    recordings: Recordings, relation: str, other: tuple[int, int], route: Route, null: Null, one: Measured
) -> dict[str, Any]:
    layers = recordings.segments.dictionary.config.layers
    about = {"relation": relation, "layer": layers[other[0]], "feature": other[1], "token": None}
    spread = {"se": one.se, "ci_low": one.ci[0], "ci_high": one.ci[1], "threshold": null.threshold, "p": null.p}
    about |= {"route": written(recordings.segments, route), "gives": one.gives}
    about |= {name: None if np.isnan(value) else value for name, value in spread.items()}
    about |= {"above_null": abs(one.gives) > null.threshold, "offset": one.offset, "offset_share": one.offset_share}
    return about


def _words(recordings: Recordings, reads: Reads, shown: int, judge: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Tokens, at the feature's own place and through heads."""
    segments, subject = recordings.segments, recordings.segments.subject
    index = next(i for i, e in enumerate(subject.embeddings) if e.kind == "token")
    best: dict[str, list[tuple[float, float, int, Route]]] = {"reads": [], "follows": []}
    for route in routes(segments, reads.slot):
        if not segments.joined(Place("embedding", index), reads.last(route)):
            continue
        found = de_embedding(recordings, reads, route, **judge)
        values = found.given[:, 0].nan_to_num().double().cpu().numpy()
        relation = "follows" if route and route[0].kind == "head" else "reads"
        best[relation] += [(float(values[v]), float(found.threshold[0]), v, route) for v in _largest(values, shown)]
    for relation, some in best.items():
        for value, threshold, word, route in sorted(some, key=lambda one: -abs(one[0]))[:shown]:
            token = subject.tokens(torch.tensor([word]))[0]
            yield {"relation": relation, "token": token, "route": written(segments, route), "gives": value,
                   "threshold": threshold, "above_null": abs(value) > threshold}  # fmt: skip


def _promoted(recordings: Recordings, slot: int, feature: int, shown: int) -> Iterator[dict[str, Any]]:
    """Tokens whose logits rise or fall by what the feature writes on the direct way; in logits, and no null."""
    effect = un_embedding(recordings, slot, feature)
    for word in _largest(effect.cpu().numpy(), shown):
        token = recordings.segments.subject.tokens(torch.tensor([word]))[0]
        yield {"relation": "promotes", "token": token, "route": "head of the subject", "gives": float(effect[word])}


def _classes(recordings: Recordings, reads: Reads, found: list[Any]) -> list[dict[str, Any]]:
    """Per kind of token, as the domain says: how many there are, what they give by themselves on average, the mean
    pre-activation, both in standard deviations from its mean over all tokens, and the share of the variance within the
    kind that they explain by themselves."""
    subject, every = recordings.segments.subject, {}
    domain = None if subject.files.domain is None else domain_of(subject.files.domain)
    at = reads.slot, int(reads.features[0])
    unit, mean = float(recordings.deviation[at]), float(recordings.mean[at])
    for (_, batch), part in zip(recordings.batches, found, strict=True):
        special = subject.special(batch.ids).cpu()
        for row, text in enumerate(batch.sequences):
            tokens = subject.tokens(batch.ids[row])
            units = [None] * len(tokens) if domain is None else domain.read(text, tokens, batch.offsets[row]).units
            for place, one in enumerate(units):
                if not bool(part.counted[row, place]):
                    continue
                kind = "special" if special[row, place] else getattr(one, "kind", "token")
                own = part.terms["token"] if "token" in part.terms else torch.zeros_like(part.total)
                every.setdefault(kind, []).append((float(own[row, place, 0]), float(part.total[row, place, 0])))
    centre = float(np.mean([own for some in every.values() for own, _ in some]))
    rows = []
    for kind, some in sorted(every.items()):
        own, total = np.asarray(some).T
        variance = total.var()
        share = float(np.mean((own - own.mean()) * (total - total.mean())) / variance) if variance > 0 else None
        rows.append({"kind": kind, "n": len(some), "gives": float(own.mean() - centre) / unit,
                     "preactivation": float(total.mean() - mean) / unit, "share": share})  # fmt: skip
    return rows


def _largest(values: np.ndarray | Tensor, n: int) -> list[int]:
    """Places of the `n` largest by size, those that are not zero, largest first."""
    values = np.asarray(values)
    return [int(i) for i in np.argsort(-np.abs(values), kind="stable")[:n] if values[i] != 0]
