"""Anchored answers: neurons that push one answer whatever is asked, and what they write towards it.

A neuron's push is its activation times the gradient, there, of the anchor's logit less the mean logit of other tokens,
averaged over places whose own token is not the anchor. The part of its output along the anchor is taken out, nothing
is added: adding the right answer of the same example would be a leak.
"""

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.interventions.gradients import activations_and_slopes
from isotrace.interventions.hookpoints import AlongNeurons, Neurons
from isotrace.steering import FeatureEdit
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.directions.readouts.sites import asked, at, sites_where
from isotrace.steering.directions.units.token_mass import token_set


@direction(
    "anchored", labels="none: places of other tokens", gradients="yes", cost="3 · N · sites F", tuned="k, gap, α",
    components=Neurons, source="Anchored answers in multiple choice, 2024",
)  # fmt: skip
def anchored(
    fitting: Fitting, token: str, k: int = 10, gap: float = 4.0, sites: int = 4, seed: int = 0
) -> list[FeatureEdit]:  # fmt: skip
    """The neurons that push the answer `token` most, without what they write along it

    At most `k`, each with a mean push of more than `gap` logits; `sites` places are read in each sequence. At α = 1 all
    of a neuron's output along the mean gradient at the final hidden state is out. Raises InputError where no neuron
    pushes so far."""
    subject, examples = fitting.subject, fitting.contrast.examples
    if not isinstance(fitting.components, Neurons):
        raise InputError(f"anchored edits neurons, not {fitting.components.name}s: leave out the components.")
    anchor = token_set(subject, token)
    places = sites_where(subject, examples, lambda t: t not in anchor, sites, seed)
    if not places:
        raise InputError(f"every token is {token}: give sequences with other ones.")
    others = [i for i in range(len(subject.tokenizer)) if i not in anchor and not bool(subject.is_special[i])]
    pushes = [torch.zeros(size, dtype=torch.float64) for size, _ in fitting.components.sizes(subject)]
    vector = torch.zeros(subject.d_model, dtype=torch.float64)
    for batch, where in asked(subject, examples, places):
        slope: list[Tensor] = []

        def value(final: Tensor, where: Tensor = where, slope: list[Tensor] = slope) -> Tensor:
            leaf = final.detach().requires_grad_(True)
            slope.append(torch.autograd.grad(gap_of(leaf, where), leaf)[0])
            return gap_of(final, where)

        def gap_of(final: Tensor, where: Tensor) -> Tensor:
            logits = subject.head(at(final, where))
            return (logits[:, anchor].logsumexp(-1) - logits[:, others].mean(-1)).sum()

        values, slopes = activations_and_slopes(subject, fitting.components, batch, value)
        vector += slope[0].double().sum((0, 1)).cpu()
        for layer, push in enumerate(pushes):
            push += (values[layer] * slopes[layer]).double().sum((0, 1, 3)).cpu() / len(places)
    vector /= vector.norm().clamp(min=1e-12)
    ranked = [(push, layer, i) for layer in fitting.layers for i, push in enumerate(pushes[layer].tolist())]
    found = sorted(ranked, reverse=True)
    chosen = [(layer, i) for push, layer, i in found[:k] if push > gap]
    if not chosen:
        raise InputError(f"no neuron pushes {token} by {gap:g} logits, the most is {found[0][0]:.2g}: lower gap.")
    parts = AlongNeurons(vector.float())
    edits = []
    for layer in sorted({layer for layer, _ in chosen}):
        units = [i for at_layer, i in chosen if at_layer == layer]
        share = subject.neuron_writes(layer)[0][units].double().cpu() @ vector
        given = {"components": parts, "layer": layer, "pool": tuple(range(len(pushes[layer])))}
        edits.append(FeatureEdit(**given, units=tuple(units), values=-share, mode="scale"))
    return edits
