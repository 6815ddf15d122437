"""SNMF: groups of neurons that act together, by semi-nonnegative matrix factorisation (Ding et al. 2010; Shafran et al.
2025 for MLPs). The factorisation is that of the dictionary of this name; one start loses groups, so the best of several
is taken.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.datasets.tasks import Example
from isotrace.dictionaries.architectures.snmf import best_starts, dealt, nonnegative
from isotrace.interventions.hookpoints import Neurons
from isotrace.steering import AddEdit
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.states import by_position

STEPS = 100
"""Multiplicative steps of the loads of a held-out sequence."""


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
        some = activations[torch.randperm(len(activations), generator=generator)[:tokens]]
        if k > len(some):
            raise InputError(f"{len(some)} tokens do not hold {k} groups: give a smaller k, or more sequences.")
        groups = best_starts(some, k, share, iterations, starts=dealt(restarts, 1, seed))[0].factors
        scores = _held_out(fitting, groups, held, layer)
        best = int(scores.abs().argmax())
        group = groups[:, best] * scores[best].sign()
        edits.append(
            AddEdit(
                components=fitting.components, layer=layer, direction=fitting.shaped(layer, group),
                scale=fitting.lengths[layer],
            )
        )  # fmt: skip
    return edits


def _tokens(fitting: Fitting, examples: Sequence[Example], layer: int):
    """(row, float64 `[tokens, neurons]`) of the tokens that are not special."""
    for row, states in by_position(fitting.subject, examples, fitting.components, (layer,)):
        special = fitting.subject.special(torch.from_numpy(examples[row].ids)).cpu()
        yield row, states[layer][~special]


def _held_out(fitting: Fitting, groups: Tensor, held: Contrast, layer: int) -> Tensor:
    """`[k]`: difference of the sides' mean loads in standard deviations over sequences."""
    found, inner = torch.zeros(len(held), groups.shape[1], dtype=torch.float64), groups.T @ groups
    for row, x in _tokens(fitting, held.examples, layer):
        found[row] = nonnegative(x @ groups, inner, STEPS).mean(0)
    return torch.from_numpy(held.weights) @ found / found.std(0).clamp(min=1e-12)
