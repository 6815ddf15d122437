"""Parts of one input set to what they are on the aligned token of another (interchange; METHODS §6).

A node is (layer, token of A, component). Swapped, it stands at its activation on the partner of that token in B, and
at a reference where the token has none. All else is recomputed: attention, norms, MLPs, the other components.

With every feature swapped the output of an MLP on an aligned token is m(x) − m̂(x) + m̂_B: what the dictionary writes
is B's, while the error terms m − m̂ on the stream as it runs, and the embeddings, stay those of A. With every neuron
swapped the MLP outputs are B's altogether, and with the embeddings too, where every token has a partner, the run is B.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from isotrace.attribution.ablation import Nodes, ablated, first_order
from isotrace.interventions import Components, Values
from isotrace.interventions.where import Where
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

SAME = 1e-5
"""Activations that differ by less than this share of the largest of their layer are the same up to rounding."""


@dataclass(frozen=True, eq=False)
class Swaps:
    """`own`: activations on A, `other`: what a swap sets them to, `[1, tokens, components, width]` per layer.
    `candidates [n, 3]`: nodes whose two activations differ, the only ones that a swap moves."""

    subject: Subject
    components: Components
    batch: Batch
    target: Target
    own: Values
    other: Values
    candidates: Nodes

    def values(self, sets: Sequence[Nodes | Where]) -> np.ndarray:
        """T(A) with each set of nodes swapped, float64 `[len(sets)]`. EVERYWHERE takes in what is the same on both: a
        feature that is active on neither cannot wake."""
        given = (self.subject, self.components, self.other, self.batch, self.target, sets)
        return ablated(*given, complement=False).double().numpy()

    @cached_property
    def _effects(self) -> Tensor:
        given = (self.subject, self.components, self.other, self.batch, self.target)
        return torch.stack(first_order(*given)).double()

    def estimates(self, nodes: Nodes) -> Tensor:
        """By how much T(A) would fall were each of `nodes` swapped, (a_A − a_B) · ∂T/∂a, float64 `[len(nodes)]`: slopes
        of the running subject on A, from one backward pass."""
        layer, position, component = nodes.unbind(1)
        return self._effects[layer, position, component]

    def ranked(self) -> Nodes:
        """The candidates, largest estimate first, of either sign: what pulls back is a part of the difference too."""
        return self.candidates[self.estimates(self.candidates).abs().argsort(descending=True, stable=True)]

    def at(self, positions: Collection[int]) -> Nodes:
        """The candidates on some tokens."""
        return self.candidates[torch.isin(self.candidates[:, 1], torch.tensor([*positions], dtype=torch.long))]


@torch.no_grad()
def swaps_of(
    subject: Subject,
    components: Components,
    a: Batch,
    b: Batch,
    target: Target,
    partner: Sequence[int | None],
    reference: Values,
) -> Swaps:
    """Of the prepared inputs `a` and `b`, `[1, tokens]` each, with `target` as it reads `a`. `partner`: the token of B
    at every token of A, see `Alignment`. `reference [components, width]` per layer is what nodes of tokens without one
    are set to, but for inactive ones (zero on A), which stay, as inactive features are no candidates of a circuit."""
    own, there = (components.record(subject, batch)[0] for batch in (a, b))
    aligned = [i for i, place in enumerate(partner) if place is not None]
    other, nodes = [], []
    for layer, (here, given, base) in enumerate(zip(own, there, reference, strict=True)):
        put = torch.where(here == 0, here, base.to(here))
        put[:, aligned] = given[:, [place for place in partner if place is not None]].to(here)
        moved = (here - put).abs() > SAME * torch.maximum(here.abs().max(), put.abs().max())
        position, component = torch.nonzero(moved.any(-1)[0], as_tuple=True)
        nodes.append(torch.stack([torch.full_like(position, layer), position, component], 1).cpu())
        other.append(put)
    return Swaps(subject, components, a, target, own, tuple(other), torch.cat(nodes))
