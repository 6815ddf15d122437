"""Rounds of halving: with everything but the candidates ablated, drop the half whose ablation would move the target
least to first order, of either sign, down to each size of a grid."""

from collections.abc import Sequence

import torch

from isotrace.attribution.ablation import Nodes, first_order
from isotrace.attribution.circuits.search import CIRCUITS, Search
from isotrace.interventions.components import Components, Values
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target


@CIRCUITS.named("effects")
def by_effects(search: Search, sizes: Sequence[int]) -> list[Nodes]:
    parts = search.subject, search.components, search.reference, search.batch, search.target
    return halved(*parts, search.candidates, sizes)


def halved(
    subject: Subject,
    components: Components,
    reference: Values,
    batch: Batch,
    target: Target,
    candidates: Nodes,
    sizes: Sequence[int],
) -> list[Nodes]:
    """A set of each of the ascending `sizes`, every one part of the next and all of `candidates`."""
    kept, found = candidates, []
    for size in reversed(sizes):
        while len(kept) > size:
            effects = torch.stack(first_order(subject, components, reference, batch, target, kept))
            strength = effects[kept[:, 0], kept[:, 1], kept[:, 2]].abs()
            kept = kept[strength.argsort(descending=True, stable=True)[: max(size, len(kept) // 2)]]
        found.append(kept)
    return found[::-1]
