"""What is measured of a pair in the running subject, everything in the target's unit (METHODS §§6, 7).

The circuit beside matched random swaps, everything, and all but the circuit; as many neurons; what lies beyond
features; the changed tokens alone and the common ones alone; every token by itself; other spellings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from isotrace import interventions
from isotrace.attribution.ablation import Nodes
from isotrace.attribution.pairs.swaps import Swaps, swaps_of
from isotrace.attribution.verification import NEARER, matched_sets
from isotrace.base.errors import InputError
from isotrace.domains.alignment import Alignment
from isotrace.domains.domain import Domain, Reading
from isotrace.interventions.components import Values, zero_values
from isotrace.interventions.hookpoints import Neurons
from isotrace.interventions.plan import EVERYWHERE
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

LANES = ("changed", "common", "syntax", "special")
"""What a token of A is: writes atoms or residues some of which changed, none of which did, none at all, no text."""


@dataclass(frozen=True)
class Side:
    """One of the two: `batch` prepared for its `target`, whose `value` it has."""

    reading: Reading
    batch: Batch
    target: Target
    tokens: tuple[str, ...]
    value: float


@dataclass(frozen=True)
class Swapped:
    """T(A) in the target's unit: nothing swapped (`own`), everything (`every`), the circuit (`value`), all but the
    circuit (`rest`), matched random swaps `[n_controls]`; `other` is T(B). `noise`: what rounding can make of it."""

    own: float
    other: float
    every: float
    value: float
    rest: float
    controls: np.ndarray
    noise: float

    @property
    def error(self) -> float:
        return abs(self.value - self.other)

    @property
    def control_errors(self) -> np.ndarray:
        return np.abs(self.controls - self.other)

    @property
    def reason(self) -> str | None:
        """Why the circuit does not carry the difference; None where it does."""
        if not abs(self.own - self.other) > self.noise:
            return "both have the same value"
        if not self.error < abs(self.own - self.other) - self.noise:
            return "swapping it brings the value no nearer to the other one than swapping nothing"
        if len(self.controls) and not self.error < np.quantile(self.control_errors, 1 - NEARER):
            return f"it comes no nearer to the other value than {NEARER:.0%} of matched random swaps do"
        return None


@dataclass(frozen=True)
class Beyond:
    """What swapping features leaves out, T(A) with more of A at B's: `outputs` every MLP output (features and error
    terms), `embeddings` also the embeddings of aligned tokens. NaN where a token without a partner has no reference."""

    outputs: float
    embeddings: float


@dataclass(frozen=True)
class Lane:
    """Everything swapped on the tokens of a lane alone: `nodes` of them, `moved` T(A) by this much (A less swapped);
    `controls`: the same for as many matched nodes of any lane."""

    name: str
    tokens: tuple[int, ...]
    nodes: int
    moved: float
    controls: np.ndarray


def measured_swaps(
    swaps: Swaps, circuit: Nodes, density: Tensor, own: float, other: float, n_controls: int, seed: int
) -> Swapped:
    """`own`, `other`: T(A) and T(B) of plain passes."""
    controls = matched_sets(swaps.candidates, density, circuit, n_controls, seed)
    sets = [circuit[:0], EVERYWHERE, circuit, ~interventions.Nodes.of(circuit), *controls]
    nothing, every, value, left, *drawn = swaps.values(sets)
    # the same pass alone and among others, and what one of them can be told apart by at all
    noise = max(abs(nothing - own), 8 * torch.finfo(swaps.own[0].dtype).eps * max(abs(own), abs(other)))
    return Swapped(own, other, float(every), float(value), float(left), np.asarray(drawn), noise)


def by_token(swaps: Swaps, n_tokens: int) -> np.ndarray:
    """`[n_tokens]`: the value less that with everything on one token swapped."""
    nothing, *found = swaps.values([swaps.candidates[:0], *(swaps.at([token]) for token in range(n_tokens))])
    return nothing - np.asarray(found)


def neuron_swaps(
    subject: Subject, a: Side, b: Side, alignment: Alignment, means: Values | None, sizes: Sequence[int]
) -> tuple[np.ndarray | None, Beyond]:
    """T(A) with as many neurons as each of `sizes` swapped, ranked alike, and what is left beyond features. Only where
    a token has no partner do neurons need `means`."""
    if means is None and None in alignment.partner:
        return None, Beyond(np.nan, np.nan)
    means = zero_values(subject, Neurons()) if means is None else means
    swaps = swaps_of(subject, Neurons(), a.batch, b.batch, a.target, alignment.partner, means)
    ranking = swaps.ranked()
    *values, outputs = swaps.values([*(ranking[:n] for n in sizes), EVERYWHERE])
    ids = a.batch.ids.clone()
    for token, partner in enumerate(alignment.partner):
        if partner is not None:
            ids[:, token] = b.batch.ids[:, partner]
    embedded = replace(swaps, batch=a.batch.with_ids(ids)).values([EVERYWHERE])
    return np.asarray(values), Beyond(float(outputs), float(embedded[0]))


def lane_of(reading: Reading, token: int, changed: frozenset[int]) -> str:
    if reading.units[token].kind == "special":
        return "special"
    elements = reading.elements[token]
    return "syntax" if not elements else "changed" if changed.intersection(elements) else "common"


def lanes_of(
    swaps: Swaps, reading: Reading, changed: frozenset[int], density: Tensor, n_controls: int, seed: int
) -> tuple[Lane, ...]:
    """Lanes act together, so that what they move does not add up."""
    lanes = [lane_of(reading, token, changed) for token in range(len(reading.units))]
    found = []
    for name in LANES:
        tokens = tuple(token for token, lane in enumerate(lanes) if lane == name)
        nodes = swaps.at(tokens)
        asked = n_controls if name == "changed" and len(nodes) else 0
        controls = matched_sets(swaps.candidates, density, nodes, asked, seed)
        nothing, value, *drawn = swaps.values([nodes[:0], nodes, *controls])
        found.append(Lane(name, tokens, len(nodes), nothing - value, nothing - np.asarray(drawn)))
    return tuple(found)


@torch.no_grad()
def spelled(
    subject: Subject, domain: Domain, a: Side, b: Side, n: int, seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """T of up to `n` others of either; None for a target at a position, and for fewer than two others."""
    if not n or a.target.asked or a.target.place is not None:
        return None
    found = [values_of(subject, domain, one, n, seed) for one in (a, b)]
    return None if min(map(len, found)) < 2 else (found[0], found[1])


def values_of(subject: Subject, domain: Domain, one: Side, n: int, seed: int) -> np.ndarray:
    values = list[float]()
    for spelling in domain.spellings(one.reading, n, seed):
        try:
            batch = subject.tokenize([spelling.text])
        except InputError:
            continue
        values.append(float(one.target.value(subject, batch, one.target.hidden(subject, batch))))
    return np.asarray(values)
