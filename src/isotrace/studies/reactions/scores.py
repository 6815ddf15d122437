"""Which precursor atom a product atom comes from: scores of the precursor atoms, by attention and by other means.

Scores are `[asked, precursors]`, of the product atoms asked for and the places of `Case.precursors`. Attention is that
of a product atom to the precursor atoms: special tokens, which soak it up, the product and syntax are left out, and the
rest of each head is made to sum to 1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.studies.atom_mapping import Masked
from isotrace.studies.atoms.scores import path_integral, rollout
from isotrace.subjects.dispatch import patterns_recorded
from isotrace.subjects.subject import Batch, Subject

Head = tuple[int, int]
"""(layer, head), from 0."""


@dataclass(frozen=True)
class Attention:
    """One pass. `heads [layers, heads, asked, precursors]`; `rolled [asked, precursors]`."""

    heads: Tensor
    rolled: Tensor

    def of(self, heads: Sequence[Head], weights: Sequence[float]) -> Tensor:
        """Σ_h w_h A^h[q, k]."""
        return torch.stack([w * self.heads[head] for head, w in zip(heads, weights, strict=True)]).sum(0)


@torch.no_grad()
def attention(subject: Subject, item: Masked, asked: Sequence[int]) -> Attention:
    with patterns_recorded(subject) as patterns:
        subject.hidden(item.batch.ids, item.batch.mask)
    found = [patterns[module][0].cpu() for module in subject.attentions]
    before = list(item.case.precursors)
    heads = torch.stack(found)[:, :, list(asked)][..., before]
    return Attention(heads / heads.sum(-1, keepdim=True).clamp_min(1e-12), rollout(found)[list(asked)][:, before])


@torch.no_grad()
def left_out(subject: Subject, item: Masked) -> Tensor:
    """`[1, precursors]`: the fall of the metric when one precursor atom is masked."""
    assert subject.mask_id is not None
    before = list(item.case.precursors)
    ids = item.batch.ids.repeat(1 + len(before), 1)
    ids[range(1, len(ids)), before] = subject.mask_id
    values = value_of(subject, item)(Batch(ids, item.batch.mask.expand(len(ids), -1), (), ()))
    return (values[0] - values[1:])[None]


def integrated(subject: Subject, item: Masked) -> Tensor:
    """`[1, precursors]`: integrated gradients from the same input with every precursor atom masked."""
    assert subject.mask_id is not None
    before, empty = list(item.case.precursors), item.batch.ids.clone()
    empty[0, before] = subject.mask_id
    return path_integral(subject, item.batch, empty, value_of(subject, item))[before][None]


def value_of(subject: Subject, item: Masked) -> Callable[[Batch], Tensor]:
    """The true token's logit minus the mean logit, `[rows]` of a batch."""
    metric = item.metric(subject, "logit")
    return lambda batch: metric(batch, subject.hidden(batch.ids, batch.mask))


@dataclass(frozen=True)
class Hits:
    """Of one input: atoms asked for; of how many the best precursor atom (`atom`), and the molecule with the largest
    sum of scores (`molecule`), are those that the map names."""

    asked: int
    atom: float
    molecule: float


def hits(item: Masked, asked: Sequence[int], scores: Tensor) -> Hits:
    """Of atoms that symmetry makes equal only the one the map names counts, so shares are lower bounds."""
    before = list(item.case.precursors)
    molecules = np.array([item.case.molecule[place] for place in before])
    names = np.unique(molecules)
    sums = torch.stack([scores[:, torch.from_numpy(molecules == name)].sum(-1) for name in names], -1)
    best, largest = scores.argmax(-1).tolist(), sums.argmax(-1).tolist()
    partners = [item.case.partner[place] for place in asked]
    atom = sum(before[i] == partner for i, partner in zip(best, partners, strict=True))
    home = sum(names[i] == item.case.molecule[partner] for i, partner in zip(largest, partners, strict=True))
    return Hits(len(asked), float(atom), float(home))


def same_token(item: Masked, asked: Sequence[int], rng: np.random.Generator) -> Tensor:
    """A precursor atom at random among those of the product atom's token: knows the element, not which atom."""
    ids = item.case.batch.ids[0]
    before = list(item.case.precursors)
    same = (ids[before][None] == ids[list(asked)][:, None]).double()
    return same + torch.from_numpy(rng.random(same.shape)) / 2
