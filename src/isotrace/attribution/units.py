"""From nodes to what one points at: mass per position, and per atom or residue."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from isotrace.attribution.ablation import fitting
from isotrace.attribution.graph import AttributionGraph
from isotrace.attribution.influence import Pruned
from isotrace.domains.domain import Domain
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

Elements = Sequence[tuple[int, ...]]
"""The atoms or residues that every token writes, see `Reading.elements`."""


def reads_maxima(target: Target) -> bool:
    """Whether the target reads maxima over the tokens: effects through the graph miss what decides those, and hiding it
    does not (`isotrace reproduce atom_truth`)."""
    return target.probe is not None and "max" in target.probe.config.pool


def not_judged(domain: Domain) -> bool:
    """Whether nobody has looked, in this domain, if effects through the graph find the right elements: then what is
    measured is shown. In reactions they say next to nothing of atoms that a subject copies by attention."""
    return domain.name != "molecule"


def hiding_first(subject: Subject, domain: Domain, target: Target) -> bool:
    """Whether what hiding an element does is pictured, and not its effect through the graph."""
    return subject.mask_id is not None and (reads_maxima(target) or not_judged(domain))


@dataclass(frozen=True)
class UnitScores:
    """Shares of the circuit's mass, summing to one over `positions [tokens]`.

    `signed [tokens]` is the total effect of the token's embeddings in the frozen model.
    `elements`: index → (mass, signed), the sums over the element's own tokens; bonds and syntax keep their lane.
    """

    positions: Tensor
    signed: Tensor
    elements: dict[int, tuple[float, float]]


def evenness(values: Iterable[float]) -> float:
    """Effective share of the values by size: exp(entropy of |v| / Σ|v|) / n; 1 is evenly smeared, normal noise about
    0.75. NaN for fewer than two, or where all are 0."""
    size = torch.tensor([abs(value) for value in values], dtype=torch.float64)
    if len(size) < 2 or float(size.sum()) == 0:
        return float("nan")
    p = size / size.sum()
    return float(torch.exp(-(p * p.clamp(min=1e-300).log()).sum()) / len(p))


def unit_scores(graph: AttributionGraph, pruned: Pruned, effects: Tensor, elements: Elements) -> UnitScores:
    """Mass of a position = influence of the circuit's features and embeddings there; errors have none.

    Mass of tokens that write no element is never given to elements; a token that writes several shares its mass evenly.
    """
    mass = torch.zeros(graph.n_tokens, dtype=torch.float64)
    signed = torch.zeros(graph.n_tokens, dtype=torch.float64)
    kept = pruned.nodes[: graph.n_features]
    mass.index_add_(0, graph.feature_nodes[kept, 1], pruned.influence[: graph.n_features][kept])
    nodes = range(graph.tokens.start, graph.tokens.stop)
    positions = torch.tensor([graph.position_of(node) for node in nodes])
    mass.index_add_(0, positions, pruned.influence[graph.tokens])
    signed.index_add_(0, positions, effects[graph.tokens])
    mass /= mass.sum()
    masses, effects_of = over_elements(elements, mass), over_elements(elements, signed)
    return UnitScores(mass, signed, {one: (m, effects_of[one]) for one, m in masses.items()})


def over_elements(elements: Elements, values: Tensor) -> dict[int, float]:
    """`values [tokens]` summed over the tokens of each element; a token that writes several shares its value evenly."""
    found: dict[int, float] = {}
    for written, value in zip(elements, values.tolist(), strict=True):
        for one in written:
            found[one] = found.get(one, 0.0) + value / len(written)
    return dict(sorted(found.items()))


def tokens_of_elements(elements: Elements) -> dict[int, tuple[int, ...]]:
    """Positions of the tokens that write each element."""
    found: dict[int, tuple[int, ...]] = {}
    for position, written in enumerate(elements):
        for one in written:
            found[one] = (*found.get(one, ()), position)
    return dict(sorted(found.items()))


@torch.no_grad()
def with_ids(subject: Subject, batch: Batch, target: Target, ids: Tensor, chunk: int = 128) -> Tensor:
    """Target `[n]` of the single sequence of `batch` with `ids [n, tokens]` in place of its own."""
    parts = ids.split(fitting(chunk, ids.shape[1]))
    copies = (Batch(part, batch.mask.expand(len(part), -1), (), ()) for part in parts)
    with fast_kernels(subject):
        return torch.cat([target.value(subject, b, target.hidden(subject, b)).double() for b in copies]).cpu()


def hidden_effects(subject: Subject, batch: Batch, target: Target, elements: Elements) -> dict[int, float]:
    """By how much the target falls when the tokens of an element are replaced by mask tokens, in the running subject,
    per element; all that one token writes are hidden together and share the fall evenly. `batch` holds one sequence,
    prepared for the target; what is masked in it already is left out. None where the subject has no mask token.
    """
    if subject.mask_id is None:
        return {}
    places = elements_to_hide(subject, batch, elements)
    return shared(places, falls(subject, batch, target, places.values())[1]) if places else {}


def group_falls(
    subject: Subject, batch: Batch, target: Target, elements: Elements, groups: Sequence[Sequence[int]]
) -> list[float]:
    """By how much the target falls when all elements of a group are hidden at once, per group; NaN for one of which
    nothing can be hidden. `batch` as in `hidden_effects`."""
    if subject.mask_id is None:
        return [float("nan")] * len(groups)
    own = elements_to_hide(subject, batch, elements)
    sets = [frozenset(p for one in group for p in own.get(one, ())) for group in groups]
    fall = falls(subject, batch, target, (at for at in sets if at))[1]
    return [fall.get(at, float("nan")) for at in sets]


def elements_to_hide(subject: Subject, batch: Batch, elements: Elements) -> dict[int, frozenset[int]]:
    """Positions of the tokens that write each element and are no mask tokens; those without such a one are left out."""
    shown = batch.ids[0] != subject.mask_id
    found = {one: frozenset(p for p in at if shown[p]) for one, at in tokens_of_elements(elements).items()}
    return {one: at for one, at in found.items() if at}


def falls(
    subject: Subject, batch: Batch, target: Target, sets: Iterable[frozenset[int]]
) -> tuple[float, dict[frozenset[int], float]]:
    """(the target, by how much it falls when the tokens at each set of positions are replaced by mask tokens), in the
    running subject, which has one; `batch` holds one sequence."""
    sets = [*dict.fromkeys(sets)]
    ids = batch.ids.repeat(1 + len(sets), 1)
    for row, at in enumerate(sets, 1):
        ids[row, sorted(at)] = cast(int, subject.mask_id)
    values = with_ids(subject, batch, target, ids)
    return float(values[0]), dict(zip(sets, (values[0] - values[1:]).tolist(), strict=True))


def shared(places: Mapping[int, frozenset[int]], found: Mapping[frozenset[int], float]) -> dict[int, float]:
    """What was `found` of the tokens of every element, evenly among those that the same tokens write."""
    n = Counter(places.values())
    return {one: found[at] / n[at] for one, at in places.items()}
