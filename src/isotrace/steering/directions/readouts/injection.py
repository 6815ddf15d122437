"""Representation injection (IRI): what early layers knew, given again to later ones.

1. recover   of pairs of a clean and a corrupt input, the share of the answer's probability that comes back when one
             layer's output, at the place of the answer, is taken from the clean one
2. choose    the k₁ layers with the largest recovery are sources, the k₂ next ones behind a source are targets
3. inject    each target gains α Σ recovery_k · (output of source k in the same run), at its own norm
"""

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.interventions import Components, Intervention, MLPs, Plan, Rows, Select, To
from isotrace.interventions.hookpoints import Attentions
from isotrace.interventions.where import Tokens
from isotrace.steering import InputEdit
from isotrace.steering.directions.direction import Fitting, direction
from isotrace.steering.directions.readouts.sites import asked, at, sites_where
from isotrace.steering.directions.units.token_mass import token_set
from isotrace.subjects.subject import Batch, Subject

LEAST = 0.05
"""Pairs whose clean and corrupt probabilities differ by less say nothing of recovery."""


@direction(
    "injection", labels="clean and corrupt", pairs="clean and corrupt, equally long", cost="2·L·N F", tuned="α, k₁, k₂",
    components=Attentions, source="Iterative representation injection (IRI) 2025",
)  # fmt: skip
def injection(
    fitting: Fitting, tokens: str, sources: int = 3, targets: int = 10, sites: int = 2, seed: int = 0
) -> list[InputEdit]:  # fmt: skip
    """Outputs of the layers that carry the answer, added to those of later layers at their own norm

    Pairs are a clean (positive) and a corrupt (negative) sequence of as many tokens; the answers are those of `tokens`
    in the clean one, hidden one at a time. Components are attentions or MLPs. Raises InputError for other ones, pairs
    of unequal length, and where no pair's probability falls by 0.05 or more, or no layer recovers any of it."""
    if not isinstance(fitting.components, Attentions | MLPs):
        raise InputError(f"injection takes attentions or MLPs, not {fitting.components.name}s: name one of the two.")
    found = recovered(fitting, tokens, sites, seed)
    order = sorted(found, key=lambda layer: -found[layer])
    first = sorted(layer for layer in order[:sources] if found[layer] > 0)
    last = [layer for layer in order if first and layer > first[0]][:targets]
    if not last:
        raise InputError("no layer brings any of the answer back with others behind it: nothing can be injected.")
    where = Tokens("last" if fitting.subject.objective == "causal" else "masked")
    return [
        InputEdit(
            components=fitting.components, layer=layer, size=fitting.components.sizes(fitting.subject)[layer],
            sources={k: found[k] for k in first if k < layer}, where=where, norm="keep",
        )
        for layer in sorted(last)
    ]  # fmt: skip


def recovered(fitting: Fitting, tokens: str, sites: int, seed: int) -> dict[int, float]:
    """Layer → mean recovery over answers, (P_patched − P_corrupt)/(P_clean − P_corrupt)."""
    subject, contrast = fitting.subject, fitting.contrast
    pairs = contrast.need_pairs("injection", 1)
    clean, corrupt = ([contrast.examples[i] for i in pairs[:, side]] for side in (0, 1))
    if uneven := [a for a, b in zip(clean, corrupt, strict=True) if len(a.ids) != len(b.ids)]:
        raise InputError(f"the pair of {uneven[0].text!r} differs in length: pair sequences of as many tokens.")
    wanted = {*token_set(subject, tokens)}
    places = sites_where(subject, clean, lambda token: token in wanted, sites, seed)
    answers = torch.tensor([int(clean[site.row].ids[site.position]) for site in places])
    shares: dict[int, list[Tensor]] = {layer: [] for layer in fitting.layers}
    given = (asked(subject, examples, places) for examples in (clean, corrupt))
    start = 0
    for (batch, where), (other, _) in zip(*given, strict=True):
        expected = answers[start : start + len(where)].to(where.device)
        start += len(where)
        whole, broken = (probability(subject, one, where, expected) for one in (batch, other))
        told = (whole - broken) >= LEAST
        taken = To.other(subject, fitting.components, batch)
        for layer in fitting.layers:
            patched = probability(subject, other, where, expected, patch(fitting.components, taken, layer, where))
            shares[layer].append(((patched - broken) / (whole - broken))[told].cpu())
    found = {layer: torch.cat(parts) for layer, parts in shares.items()} if places else {}
    if not found or not len(found[fitting.layers[0]]):
        raise InputError(f"no answer of {tokens} is {LEAST} less likely in the corrupt sequence: give other pairs.")
    return {layer: float(x.mean()) for layer, x in found.items()}


@torch.no_grad()
def probability(
    subject: Subject, batch: Batch, where: Tensor, answers: Tensor, plan: Plan | None = None
) -> Tensor:  # fmt: skip
    """float64 `[rows]`: of each answer at its place."""
    logits = at(subject.head(subject.run(batch, plan=plan, logits=False).final), where)
    return logits.double().softmax(-1).gather(1, answers[:, None])[:, 0]


def patch(components: Components, taken: To, layer: int, where: Tensor) -> Plan:
    """One layer from the clean run, in every row at its own place."""
    rows = Rows(tuple(Select((layer,), None, (int(place),)) for place in where))
    return Plan.of(Intervention(components, taken, rows))
