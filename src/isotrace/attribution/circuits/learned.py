"""A mask over nodes, learned by gradient descent, free-running: straight-through estimator (Bengio et al. 2013,
arXiv:1308.3432), sizes nested as in Matryoshka codes.

Every candidate has a score. In a step the k candidates of largest score stand at what they are in the running subject
and everything else at its reference; k is one size of the grid, drawn anew, so that one ranking serves all sizes. The
gradient passes the threshold as if it were a sigmoid. What is learned is to reproduce, on the input and on members of
an `ensemble` around it, the target and the state that it is read from: one number alone is easily matched by chance.

    loss = |M_C − M|² / S² + STATE · ‖s_C − s‖² / ‖s_∅ − s‖²      means over members

s is the mean of what the target reads, weighted by how strongly it reads each position; S² the larger of what ablating
everything does to the target, |M_∅ − M|², and what a change of s of that size in a random direction would do.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isotrace.attribution.ablation import Nodes, first_order
from isotrace.attribution.circuits.ensemble import Ensemble, ensemble
from isotrace.attribution.circuits.halving import halved
from isotrace.attribution.circuits.masked import Masked
from isotrace.attribution.circuits.search import CIRCUITS, Search
from isotrace.interventions.components import Components, Values
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

STEPS, RATE, MEMBERS = 60, 0.1, 3
"""Adam steps, their rate, and members in each beside the input itself. Ranked are the mean scores of the second half:
at a threshold single nodes swap places to the end."""
STATE = 0.25
LEARN, HELD_OUT = 24, 12
"""Members of the ensemble, beside the input."""


@dataclass(frozen=True)
class Aim:
    """What a mask is to reproduce on `members`: `values [n]`, `states [n, d_read]`, in units of `scale` (S², ‖Δs‖²)."""

    members: Batch
    weights: Tensor
    values: Tensor
    states: Tensor
    scale: tuple[float, float]


def _read(subject: Subject, target: Target, batch: Batch, weights: Tensor) -> tuple[Tensor, Tensor]:
    hidden = target.hidden(subject, batch)
    return target.value(subject, batch, hidden), torch.einsum("p,bpd->bd", weights, hidden)


@torch.no_grad()
def aim_of(
    subject: Subject, components: Components, reference: Values, members: Batch, target: Target, gradient: Tensor
) -> Aim:
    """`gradient [tokens, d_read]` of the target on the input, the first of `members`."""
    strength = gradient.norm(dim=-1)
    weights = strength / strength.sum().clamp(min=1e-30)
    values, states = _read(subject, target, members, weights)
    with components.edited(subject, lambda layer, found: reference[layer].to(found).expand_as(found)):
        empty, none = _read(subject, target, members, weights)
    moved = float((none - states).square().sum(-1).mean())
    random = moved * float(strength.sum()) ** 2 / states.shape[-1]
    scale = max(float((empty - values).square().mean()), random)
    return Aim(members, weights, values, states, (max(scale, 1e-30), max(moved, 1e-30)))


@CIRCUITS.named("learned")
def by_mask(search: Search, sizes: Sequence[int]) -> list[Nodes]:
    subject, parts = search.subject, (search.subject, search.components, search.reference)
    around = around_of(search)
    aim = aim_of(*parts, around.learn, search.target, search.gradient)
    return learned(subject, *parts[1:], search.target, aim, search.candidates, sizes, search.seed)


def around_of(search: Search) -> Ensemble:
    """The ensemble that a mask is learned on, with the members that it never sees."""
    parts = search.subject, search.batch, search.target
    return ensemble(*parts, n_learn=LEARN, n_held_out=HELD_OUT, seed=search.seed)


def learned(
    subject: Subject,
    components: Components,
    reference: Values,
    target: Target,
    aim: Aim,
    candidates: Nodes,
    sizes: Sequence[int],
    seed: int,
    steps: int = STEPS,
) -> list[Nodes]:
    """A set of each of the ascending `sizes`, every one part of the next. Starts from what halving chooses."""
    first = Batch(aim.members.ids[:1], aim.members.mask[:1], (), ())
    scores = start(subject, components, reference, first, target, candidates, sizes).to(aim.values.dtype)
    scores.requires_grad_(True)
    mean = torch.zeros_like(scores) if steps and sizes[0] < len(candidates) else scores.detach()
    generator, n = torch.Generator().manual_seed(seed), len(aim.members.ids)
    adam = torch.optim.Adam([scores], RATE)
    masked = Masked(subject, components, reference, candidates, first.ids.shape[1])
    tried = [size for size in sizes if size < len(candidates)]
    for step in range(steps if tried else 0):
        size = tried[int(torch.randint(len(tried), (1,), generator=generator))]
        rows = torch.cat([torch.zeros(1, dtype=torch.long), torch.randint(n, (MEMBERS,), generator=generator)])
        for group in adam.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        batch = Batch(aim.members.ids[rows], aim.members.mask[rows], (), ())
        with torch.enable_grad(), masked.by(straight_through(scores, size)):
            values, states = _read(subject, target, batch, aim.weights)
        loss = (values - aim.values[rows]).square().mean() / aim.scale[0]
        loss = loss + STATE * (states - aim.states[rows]).square().sum(-1).mean() / aim.scale[1]
        (scores.grad,) = torch.autograd.grad(loss, [scores])
        adam.step()
        if 2 * step >= steps:
            mean = mean + scores.detach()
    order = mean.argsort(descending=True, stable=True)
    return [candidates[order[:size]] for size in sizes]


def start(
    subject: Subject,
    components: Components,
    reference: Values,
    batch: Batch,
    target: Target,
    candidates: Nodes,
    sizes: Sequence[int],
) -> Tensor:
    """Scores `[n]` from −1 to 1 that rank the candidates as halving does: by the smallest set that holds them, within a
    set by first-order effects in the whole subject."""
    effects = torch.stack(first_order(subject, components, reference, batch, target))
    layer, position, component = candidates.unbind(1)
    strength = effects[layer, position, component].abs()
    level = torch.zeros(len(candidates))
    places = {tuple(node): i for i, node in enumerate(candidates.tolist())}
    for kept in halved(subject, components, reference, batch, target, candidates, sizes):
        level[[places[tuple(node)] for node in kept.tolist()]] += 1
    strength = level + strength / strength.max().clamp(min=1e-30) / 2
    rank = strength.argsort().argsort().float()
    return 2 * rank / max(1, len(rank) - 1) - 1


def straight_through(scores: Tensor, size: int) -> Tensor:
    """`[n]`: 1 for the `size` largest scores and 0 for the others, with the gradient of a sigmoid at the threshold."""
    ordered = scores.detach().sort(descending=True).values
    threshold = (ordered[size - 1] + ordered[size]) / 2
    hard = torch.zeros_like(ordered)
    hard[scores.detach().argsort(descending=True, stable=True)[:size]] = 1
    soft = torch.sigmoid((scores - threshold) / (ordered.std() + 1e-12))
    return hard + (soft - soft.detach())
