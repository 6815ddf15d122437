"""SNMF: groups of neurons that act together, by semi-nonnegative matrix factorisation (Ding et al. 2010; Shafran et al.
2025 for MLPs).

A ≈ Z Y, A `[neurons, tokens]`, Z `[neurons, k]` of any sign and sparse, Y `[k, tokens]` ≥ 0. In turn Z by least
squares, all but its largest entries dropped, the rows of Y brought to unit norm, and Y by a multiplicative step. One
start loses groups, so the best of several is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.datasets.tasks import Example
from isotrace.interventions.hookpoints import Neurons
from isotrace.steering import AddEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.states import by_position

TINY = 1e-6


@dataclass(frozen=True)
class Factors:
    """`groups` Z `[neurons, k]`, `loads` Y `[k, tokens]`, `losses`: ‖A − ZY‖² after every iteration."""

    groups: Tensor
    loads: Tensor
    losses: tuple[float, ...]

    @property
    def loss(self) -> float:
        return self.losses[-1]


@direction(
    "snmf", labels="binary or terciles", cost="2N F + factorisation", tuned="group, sign, k", components=Neurons,
    source="Ding, Li and Jordan 2010; Shafran et al. 2025",
)  # fmt: skip
def snmf(
    fitting: Fitting, k: int = 50, restarts: int = 20, iterations: int = 300, share: float = 0.01, tokens: int = 4_000,
    seed: int = 0,
) -> list[AddEdit]:  # fmt: skip
    """In each layer the group of neurons whose load, on held-out groups, tells the sides apart best

    Factors are fitted to at most `tokens` tokens of one half of the groups; on the other half the loads of every
    sequence are compared, and the sign says which side has more. `share` of the entries of a group are kept. Raises
    InputError for too few groups of relatives, and more groups of neurons than tokens."""
    chosen, held = fitting.contrast.split(seed=seed)
    edits = []
    for layer in fitting.progress(fitting.layers, "factorising"):
        activations = torch.cat([x for _, x in _tokens(fitting, chosen.examples, layer)])
        generator = torch.Generator().manual_seed(seed)
        some = activations[torch.randperm(len(activations), generator=generator)[:tokens]].T
        if k > some.shape[1]:
            raise InputError(f"{some.shape[1]} tokens do not hold {k} groups: give a smaller k, or more sequences.")
        factors = factorised(some, k, share=share, restarts=restarts, iterations=iterations, seed=seed)
        scores = _held_out(fitting, factors.groups, held, layer)
        best = int(scores.abs().argmax())
        group = factors.groups[:, best] * scores[best].sign()
        edits.append(
            AddEdit(
                components=fitting.components, layer=layer, direction=fitting.shaped(layer, group),
                scale=fitting.lengths[layer],
            )
        )  # fmt: skip
    return edits


def factorised(
    a: Tensor, k: int, *, share: float = 0.01, restarts: int = 20, iterations: int = 2_000, seed: int = 0
) -> Factors:
    """The factors of least loss of `restarts` random starts. `share` of the entries of each column of Z are kept, one
    at least; 1 = all."""
    found = [_descended(a, k, share, iterations, seed * 1_000 + start) for start in range(restarts)]
    return min(found, key=lambda factors: factors.loss)


def loads_of(a: Tensor, groups: Tensor, iterations: int = 100) -> Tensor:
    """Y ≥ 0 `[k, tokens]` for fixed `groups`."""
    loads = torch.full((groups.shape[1], a.shape[1]), 1.0, dtype=a.dtype)
    for _ in range(iterations):
        loads = _stepped(a, groups, loads)
    return loads


def _descended(a: Tensor, k: int, share: float, iterations: int, seed: int) -> Factors:
    generator = torch.Generator().manual_seed(seed)
    loads = torch.rand(k, a.shape[1], generator=generator, dtype=torch.float64).to(a)
    keep, total, losses = max(1, round(share * len(a))), a.square().sum(), []
    groups = a.new_zeros(len(a), k)
    for _ in range(iterations):
        gram = loads @ loads.T + TINY * torch.eye(k, dtype=a.dtype)
        groups = torch.linalg.solve(gram, loads @ a.T).T
        if keep < len(a):
            least = groups.abs().topk(keep, dim=0).values[-1]
            groups = groups.where(groups.abs() >= least, 0.0)
        norms = loads.norm(dim=1).clamp(min=1e-12)
        groups, loads = groups * norms, loads / norms[:, None]
        loads = _stepped(a, groups, loads)
        cross, inner = groups.T @ a, groups.T @ groups
        losses.append(float(total - 2 * (cross * loads).sum() + ((inner @ loads) * loads).sum()))
        if len(losses) > 10 and losses[-11] - losses[-1] < 1e-7 * float(total):
            break
    return Factors(groups, loads, tuple(losses))


def _stepped(a: Tensor, groups: Tensor, loads: Tensor) -> Tensor:
    """Y √((P⁺ + Q⁻Y) / (P⁻ + Q⁺Y)), P = ZᵀA, Q = ZᵀZ: it never raises the loss."""
    cross, inner = groups.T @ a, groups.T @ groups
    up = cross.clamp(min=0) + (-inner).clamp(min=0) @ loads
    down = (-cross).clamp(min=0) + inner.clamp(min=0) @ loads
    return loads * (up / (down + TINY)).sqrt()


def _tokens(fitting: Fitting, examples: Sequence[Example], layer: int):
    """(row, float64 `[tokens, neurons]`) of the tokens that are not special."""
    for row, states in by_position(fitting.subject, examples, fitting.components, (layer,)):
        special = fitting.subject.special(torch.from_numpy(examples[row].ids)).cpu()
        yield row, states[layer][~special]


def _held_out(fitting: Fitting, groups: Tensor, held: Contrast, layer: int) -> Tensor:
    """`[k]`: difference of the sides' mean loads in standard deviations over sequences."""
    found = torch.zeros(len(held), groups.shape[1], dtype=torch.float64)
    for row, x in _tokens(fitting, held.examples, layer):
        found[row] = loads_of(x.T, groups).mean(1)
    return torch.from_numpy(held.weights) @ found / found.std(0).clamp(min=1e-12)
