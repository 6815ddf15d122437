"""The position-bias score: how much of what a subject predicts depends on the order in which segments are written."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from itertools import permutations as permutations_of
from math import factorial, nan, prod

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, silent
from isotrace.steering.inference.segments import Segmenter, Spans, fragments, tokens_of
from isotrace.steering.questions import Questions
from isotrace.subjects.subject import Batch, Changes, Subject


@dataclass(frozen=True)
class Shift:
    """Of text `index`: mean total-variation distance over `tokens` and `orders` (`score`), and the mean negative
    log-likelihood of these tokens over all orders, nats (`loss`)."""

    index: int
    text: str
    score: float
    loss: float
    tokens: int
    orders: int


@dataclass(frozen=True)
class PositionBias:
    """`score`, `loss`: means over `rows`, NaN of none; `rejects` (index, text, reason). A subject that predicts the
    same whatever it reads has no bias, so a score is read beside its loss."""

    rows: tuple[Shift, ...]
    rejects: tuple[tuple[int, str, str], ...]

    @property
    def score(self) -> float:
        return float(np.mean([row.score for row in self.rows])) if self.rows else nan

    @property
    def loss(self) -> float:
        return float(np.mean([row.loss for row in self.rows])) if self.rows else nan


def position_bias(
    subject: Subject, texts: Sequence[str], plan: Changes | None = None, *, spans: Segmenter = fragments,
    permutations: int = 5, tokens: int = 8, seed: int = 0, progress: Progress = silent,
) -> PositionBias:  # fmt: skip
    """Mean of ½ Σ |p − q| between what `subject`, under `plan`, predicts of a token in the text as it is written and in
    one with its segments in another order.

    At most `permutations` other orders of a text and `tokens` of its tokens, drawn at random: of a masked subject any,
    each masked alone; else those behind the segments but for the first, since what stands before the others changes.
    Texts of one segment, and those whose tokens change with the order, are rejects. Raises SubjectError for a subject
    that predicts no tokens."""
    rows, rejects, rng = [], [], np.random.default_rng((seed, 10))
    for i, text in progress(list(enumerate(texts)), "asking in other orders"):
        try:
            batch, places = _written(subject, text, spans(text), permutations, tokens, rng)
        except InputError as error:
            rejects.append((i, text, str(error)))
            continue
        found, truth = _predicted(subject, batch, places, plan)
        apart = (found[1:] - found[:1]).abs().sum(-1) / 2
        loss = -found.gather(-1, truth[..., None]).log().mean()
        rows.append(Shift(i, text, float(apart.mean()), float(loss), apart.shape[1], apart.shape[0]))
    return PositionBias(tuple(rows), tuple(rejects))


def _written(
    subject: Subject, text: str, spans: Spans, permutations: int, tokens: int, rng: np.random.Generator
) -> tuple[Batch, Tensor]:  # fmt: skip
    """(the text in some orders, its own first; place in each of the tokens asked about `[orders, tokens]`)."""
    orders = orders_of([text[a:b] for a, b in spans], permutations, rng)
    if len(orders) < 2:
        raise InputError(f"{text!r} has one segment, or several alike, which stand in no other order.")
    batch = subject.tokenize([reordered(text, spans, order) for order in orders])
    rows = tokens_of(text, batch.offsets[0], spans)
    moved = torch.stack([moved_tokens(rows, len(batch.ids[0]), order) for order in orders]).to(batch.ids.device)
    if not torch.equal(batch.ids.gather(1, moved), batch.ids[:1].expand_as(batch.ids)):
        raise InputError(f"{text!r} has other tokens when its segments change places: give other spans.")
    about = batch.mask[0] & ~subject.special(batch.ids[0])
    if subject.objective == "masked":
        for (_, stop), (start, _) in pairwise(rows):  # which of the separators is which cannot be said
            about[stop:start] = False
    else:
        about[: rows[-1][1] + 1] = False  # the first is predicted where the last segment ends
    asked = torch.nonzero(about)[:, 0].cpu().numpy()
    if not len(asked):
        raise InputError(f"nothing stands behind the segments of {text!r}, so there is nothing to predict from them.")
    chosen = torch.from_numpy(np.sort(rng.permutation(asked)[:tokens])).to(moved.device)
    return batch, moved[:, chosen]


def reordered(text: str, spans: Spans, order: Sequence[int]) -> str:
    """The text with its segments in another order; what stands between, before and behind them stays."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    between = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    parts = [text[slice(*spans[s])] for s in order]
    return between[0] + "".join(part + rest for part, rest in zip(parts, between[1:], strict=True))


def orders_of(parts: Sequence[str], most: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """The order as it is, and at most `most` others. Orders differ in the text that they make, and those alike stand in
    their own order."""
    kinds = {part: [i for i, other in enumerate(parts) if other == part] for part in parts}

    def told(order: Sequence[int]) -> tuple[int, ...]:
        left = {part: iter(places) for part, places in kinds.items()}
        return tuple(next(left[parts[i]]) for i in order)

    n = factorial(len(parts)) // prod(factorial(len(places)) for places in kinds.values())
    found = {tuple(range(len(parts))): None}
    if n - 1 <= most:
        found |= dict.fromkeys(map(told, permutations_of(range(len(parts)))))
    while len(found) < min(n, most + 1):
        found[told(rng.permutation(len(parts)).tolist())] = None
    return [*found]


def moved_tokens(rows: Sequence[tuple[int, int]], n_tokens: int, order: Sequence[int]) -> Tensor:
    """`[tokens]`: where each token of the text stands when the segments at `rows` are in another order."""
    places, at = torch.arange(n_tokens), rows[0][0]
    gaps = [start - stop for (_, stop), (start, _) in pairwise(rows)]
    for slot, s in enumerate(order):
        start, stop = rows[s]
        places[start:stop] = torch.arange(at, at + stop - start)
        at += stop - start
        if slot < len(gaps):  # what stands between the segments in the text, in its order
            places[rows[slot][1] : rows[slot + 1][0]] = torch.arange(at, at + gaps[slot])
            at += gaps[slot]
    return places


def _predicted(
    subject: Subject, batch: Batch, places: Tensor, plan: Changes | None
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(probabilities float64 `[orders, tokens, vocabulary]`, the tokens that stand there `[orders, tokens]`)."""
    sites = torch.zeros_like(batch.mask).scatter(1, places, True)
    questions = Questions.of(subject, [replace(batch, sites=sites)])
    found = torch.cat([p.double().exp().cpu() for p in questions.answers(plan)])
    found = found.view(*places.shape, -1)  # in the order in which each row has them
    order = places.argsort(1).argsort(1).cpu()
    return found.gather(1, order[..., None].expand_as(found)), batch.ids.gather(1, places).cpu()
