"""Why does the subject say one thing of A and another of B? The difference T(A) − T(B), verified by interchange.

1. align    tokens of A with tokens of B, as the domain does; a target that names a position is read at its partner in B
2. rank     every node whose activation differs, by first order in the running subject, from one backward pass
3. circuit  of sizes of a grid the smallest from which on, swapped from B into A, it leaves T(A) within a tolerance of
            T(B); else the nearest. No control is looked at
4. measure  beside it: matched random swaps, as many neurons, everything swapped, all but the circuit swapped
5. where    everything swapped on the changed atoms alone, on the common ones alone, and on every token by itself
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from isotrace.attribution.ablation import Ablation, Nodes, feature_values
from isotrace.attribution.pairs.measures import (
    Beyond,
    Lane,
    Side,
    Swapped,
    by_token,
    lanes_of,
    measured_swaps,
    neuron_swaps,
    spelled,
)
from isotrace.attribution.pairs.swaps import Swaps, swaps_of
from isotrace.base.errors import InputError, SubjectError
from isotrace.base.progress import Progress, silent
from isotrace.base.settings import checked_seed
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.domains.alignment import Alignment
from isotrace.domains.domain import Domain, Reading, domain_of
from isotrace.interventions.components import Values, zero_values
from isotrace.interventions.hookpoints import Neurons
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target, parse_target


@dataclass(frozen=True)
class PairConfig:
    """Settings of a pair. `sizes`: those of the circuit to try, as shares of the nodes that differ; `tolerance`: a
    share of |T(A) − T(B)|. `ablation`: what nodes of tokens without a partner are set to. `n_nodes`: nodes of the
    ranking that are swapped one by one. `n_controls`: matched random swaps. `n_spellings`: others tried of either.
    """

    sizes: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)
    tolerance: float = 0.1
    ablation: Ablation = "mean"
    n_nodes: int = 96
    n_controls: int = 24
    n_spellings: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        checked_seed(self.seed)


@dataclass(frozen=True)
class Paired:
    """Everything computed for one pair.

    `ranking`: the nodes that differ, largest estimate first; `circuit [n, 3]` of them. `sizes` of the grid and T(A)
    with each swapped (`values`). `measured`: T(A) less T(A) with one node swapped, of the first of the ranking.
    `lanes`: of A, and of B with what A has swapped in. `effects`: of every token of A, and of B, T of that side less
    the same with everything on this token swapped in from the other. `neurons`: T(A) with as many neurons as each of
    `sizes` swapped, None where nobody knows their mean.
    `spellings`: T of other spellings of either, None where they do not have it.
    """

    domain: Domain
    alignment: Alignment
    a: Side
    b: Side
    dictionary: Dictionary
    swaps: Swaps
    ranking: Nodes
    circuit: Nodes
    sizes: tuple[int, ...]
    values: np.ndarray
    measured: np.ndarray
    swapped: Swapped
    beyond: Beyond
    lanes: tuple[tuple[Lane, ...], tuple[Lane, ...]]
    effects: tuple[np.ndarray, np.ndarray]
    neurons: np.ndarray | None
    spellings: tuple[np.ndarray, np.ndarray] | None
    config: PairConfig


def pair(
    subject: Subject,
    dictionary: Dictionary,
    a: str,
    b: str,
    target: str,
    config: PairConfig,
    *,
    neuron_means: Values | None = None,
    progress: Progress = silent,
) -> Paired:
    """`neuron_means`: what neurons of a token without a partner are set to under mean ablation, `[neurons, 1]` per
    layer. Raises InputError for a target or input that cannot be used and two that cannot be aligned, SubjectError for
    a subject that names no domain."""
    if subject.files.domain is None:
        raise SubjectError(
            f"{subject.source} names no domain, so nothing tells what its tokens stand for: give --domain."
        )
    subject.require_float32("a pair")
    domain, steps = domain_of(subject.files.domain), iter(progress(range(5), "comparing"))
    batches = [subject.tokenize([text.strip()]) for text in (a, b)]
    readings = [domain.read(one.sequences[0], subject.tokens(one.ids[0]), one.offsets[0]) for one in batches]
    alignment = domain.align(*readings)
    goal = parse_target(target, subject, batches[0])
    goals = goal, at_partner(goal, alignment)
    one, other = (side(subject, *parts) for parts in zip(readings, batches, goals, strict=True))
    if torch.equal(one.batch.ids, other.batch.ids):
        raise InputError(f"what {target} hides is all that differs: ask for another position.")
    next(steps, None)
    drawn = config.n_controls, config.seed
    reference = feature_values(dictionary, config.ablation)
    given = subject, Features(dictionary)
    swaps = swaps_of(*given, one.batch, other.batch, one.target, alignment.partner, reference)
    if not len(swaps.candidates):
        raise InputError(f"no feature differs between {a!r} and {b!r}: the dictionary cannot tell them apart.")
    ranking, n = swaps.ranked(), len(swaps.candidates)
    sizes = tuple(sorted({max(1, round(share * n)) for share in config.sizes}))
    values = swaps.values([ranking[:size] for size in sizes])
    place = chosen(np.abs(values - other.value), config.tolerance * abs(one.value - other.value))
    circuit = ranking[: sizes[place]]
    next(steps, None)
    swapped = measured_swaps(swaps, circuit, dictionary.density, one.value, other.value, *drawn)
    next(steps, None)
    back = swaps_of(*given, other.batch, one.batch, other.target, alignment.back(len(other.tokens)), reference)
    effects = by_token(swaps, len(one.tokens)), by_token(back, len(other.tokens))
    means = zero_values(subject, Neurons()) if config.ablation == "zero" else neuron_means
    neurons, beyond = neuron_swaps(subject, one, other, alignment, means, sizes)
    next(steps, None)
    found = Paired(
        domain=domain,
        alignment=alignment,
        a=one,
        b=other,
        dictionary=dictionary,
        swaps=swaps,
        ranking=ranking,
        circuit=circuit,
        sizes=sizes,
        values=values,
        measured=swapped.own - swaps.values([node[None] for node in ranking[: config.n_nodes]]),
        swapped=swapped,
        beyond=beyond,
        lanes=(
            lanes_of(swaps, one.reading, alignment.changed[0], dictionary.density, *drawn),
            lanes_of(back, other.reading, alignment.changed[1], dictionary.density, *drawn),
        ),
        effects=effects,
        neurons=neurons,
        spellings=spelled(subject, domain, one, other, config.n_spellings, config.seed),
        config=config,
    )
    next(steps, None)
    return found


def at_partner(target: Target, alignment: Alignment) -> Target:
    """The target as it reads B. Raises InputError for a position that has no partner there."""

    def partner(place: int) -> int:
        found = alignment.partner[place] if place < len(alignment.partner) else None
        if found is None:
            raise InputError(f"position {place} of the first has no aligned token in the second: ask for another one.")
        return found

    for name in ("position", "place"):
        if (place := getattr(target, name)) is not None:
            target = replace(target, **{name: partner(place)})
    if target.swaps:
        target = replace(target, swaps=tuple((partner(place), *ids) for place, *ids in target.swaps))
    return target


@torch.no_grad()
def side(subject: Subject, reading: Reading, batch: Batch, target: Target) -> Side:
    prepared = target.prepare(subject, batch)
    value = target.value(subject, prepared, target.hidden(subject, prepared))
    return Side(reading, prepared, target, tuple(subject.tokens(prepared.ids[0])), float(value))


def chosen(errors: np.ndarray, tolerance: float) -> int:
    """Step 3: the place, among sizes in ascending order."""
    lasting = np.logical_and.accumulate((errors <= tolerance)[::-1])[::-1]
    return int(lasting.argmax()) if lasting.any() else int(errors.argmin())
