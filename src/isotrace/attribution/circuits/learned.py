"""A mask over nodes, learned by gradient descent, free-running: straight-through estimator (Bengio et al. 2013,
arXiv:1308.3432), one ranking for all sizes as in Matryoshka codes.

Every candidate has a score. In a step the k candidates of largest score stand at what they are in the running subject
and everything else at its reference; k is one size of the grid, drawn anew, so that one ranking serves all sizes. The
gradient passes the threshold as if it were a sigmoid. What is learned is to reproduce the target on the input and on
members of an `ensemble` around it: one number alone is easily matched by chance.

    loss = (M_C − M)²      mean over members

One ranking has to serve all sizes, and what it gains for some it loses for others: of a size the set that halving
chooses stands, where that is nearer to the target on some of the members that are learned from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from isotrace.attribution.ablation import Nodes, first_order
from isotrace.attribution.circuits.ensemble import Ensemble, ensemble
from isotrace.attribution.circuits.halving import halved
from isotrace.attribution.circuits.masked import Masked
from isotrace.attribution.circuits.search import CIRCUITS, Search
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.subject import Batch

STEPS, RATE, MEMBERS = 20, 0.02, 1
"""Adam steps, their rate, and members in each beside the input itself. Ranked are the mean scores of the second half:
at a threshold single nodes swap places to the end."""
LEARN, HELD_OUT, COMPARED = 24, 12, 8
"""Members of the ensemble, beside the input: learned from, never seen, and the first of those learned from, on which
the two sets of a size are compared."""


@dataclass(frozen=True)
class Aim:
    """What a mask is to reproduce: the `values [n]` of the target on `members`, the input first."""

    members: Batch
    values: Tensor

    def first(self, n: int) -> "Aim":
        return Aim(Batch(self.members.ids[:n], self.members.mask[:n], (), ()), self.values[:n])


def _value(search: Search, batch: Batch) -> Tensor:
    return search.target.value(search.subject, batch, search.target.hidden(search.subject, batch))


@CIRCUITS.named("learned")
def by_mask(search: Search, sizes: Sequence[int]) -> list[Nodes]:
    if "aim" not in search.known:
        members = around_of(search).learn
        with torch.no_grad(), fast_kernels(search.subject):
            search.known["aim"] = Aim(members, _value(search, members))
    aim: Aim = search.known["aim"]
    first = start(search, sizes)
    ways = [ranked(search, first, sizes), ranked(search, learned(search, aim, first, sizes), sizes)]
    nearer, n = partial(distance, search, aim.first(1 + COMPARED)), len(search.candidates)
    return [one if len(one) == n else min(one, two, key=nearer) for one, two in zip(*ways, strict=True)]


def ranked(search: Search, scores: Tensor, sizes: Sequence[int]) -> list[Nodes]:
    """The candidates of largest score, of each of `sizes`."""
    order = scores.argsort(descending=True, stable=True)
    return [search.candidates[order[:size]] for size in sizes]


@torch.no_grad()
def distance(search: Search, aim: Aim, nodes: Nodes) -> float:
    """|M_C − M|, its mean over the members."""
    masked = Masked(search.subject, search.components, search.reference, nodes, aim.members.ids.shape[1])
    with fast_kernels(search.subject), masked.by(torch.ones(len(nodes)).to(aim.values)):
        return float((_value(search, aim.members) - aim.values).abs().mean())


def around_of(search: Search) -> Ensemble:
    """The ensemble that a mask is learned on, with the members that it never sees."""
    parts = search.subject, search.batch, search.target
    return ensemble(*parts, n_learn=LEARN, n_held_out=HELD_OUT, seed=search.seed)


def learned(search: Search, aim: Aim, scores: Tensor, sizes: Sequence[int]) -> Tensor:
    """Scores `[n]` of the candidates from those given, trained for all of `sizes`."""
    tried = [size for size in sizes if size < len(search.candidates)]
    if not tried:
        return scores
    scores = scores.to(aim.values, copy=True).requires_grad_(True)
    mean = torch.zeros_like(scores)
    generator, n = torch.Generator().manual_seed(search.seed), len(aim.members.ids)
    adam = torch.optim.Adam([scores], RATE)
    masked = Masked(search.subject, search.components, search.reference, search.candidates, aim.members.ids.shape[1])
    for step in range(STEPS):
        size = tried[int(torch.randint(len(tried), (1,), generator=generator))]
        rows = torch.cat([torch.zeros(1, dtype=torch.long), torch.randint(n, (MEMBERS,), generator=generator)])
        for group in adam.param_groups:
            group["lr"] = RATE * (1 - step / STEPS)
        batch = Batch(aim.members.ids[rows], aim.members.mask[rows], (), ())
        with torch.enable_grad(), masked.by(straight_through(scores, size)):
            loss = (_value(search, batch) - aim.values[rows]).square().mean()
        (scores.grad,) = torch.autograd.grad(loss, [scores])
        adam.step()
        if 2 * step >= STEPS:
            mean = mean + scores.detach()
    return mean.cpu()


def start(search: Search, sizes: Sequence[int]) -> Tensor:
    """Scores `[n]` from −1 to 1 that rank the candidates as halving does: by the smallest set that holds them, within a
    set by first-order effects in the whole subject."""
    parts = search.subject, search.components, search.reference, search.batch, search.target
    layer, position, component = search.candidates.unbind(1)
    strength = torch.stack(first_order(*parts))[layer, position, component].abs().cpu()
    level, counted = torch.zeros(len(search.candidates)), 1 + search.candidates.amax(0)
    number = lambda nodes: (nodes[:, 0] * counted[1] + nodes[:, 1]) * counted[2] + nodes[:, 2]  # noqa: E731
    for kept in halved(*parts, search.candidates, sizes):
        level += torch.isin(number(search.candidates), number(kept))
    strength = level + strength / strength.max().clamp(min=1e-30) / 2
    rank = strength.argsort().argsort().float()
    return 2 * rank / max(1, len(rank) - 1) - 1


def straight_through(scores: Tensor, size: int) -> Tensor:
    """`[n]`: 1 for the `size` largest scores and 0 for the others, with the gradient of a sigmoid at the threshold."""
    best = scores.detach().topk(size + 1)
    threshold = best.values[-2:].mean()
    hard = torch.zeros_like(scores)
    hard[best.indices[:-1]] = 1
    soft = torch.sigmoid((scores - threshold) / (scores.detach().std() + 1e-12))
    return hard + (soft - soft.detach())
