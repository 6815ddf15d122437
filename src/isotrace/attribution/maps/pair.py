"""Clean and corrupt: one sequence, a span of it that the answer hangs on, and the same with that span corrupted.

1. candidates  every run of `span` tokens that are neither special nor asked about
2. corrupt     each by itself: hidden behind mask tokens, exchanged for tokens of the same kind, or, a variant that
               leaves the data's distribution, with noise on its embeddings
3. the cause   the candidate that moves the answer most, unless a second sequence says what differs. It is chosen on the
               pair that is then mapped, so the size of its effect flatters; what the map tells is where it goes
4. null        candidates of the same length that share no token with the cause
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from isotrace.attribution.ablation import ablated
from isotrace.attribution.maps.answer import Answer
from isotrace.attribution.units import with_ids
from isotrace.base.errors import InputError, SubjectError
from isotrace.base.settings import checked_seed
from isotrace.domains.domain import Domain, Reading
from isotrace.interventions import Embeddings, Intervention, Plan, Select, To
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target

Corruption = Literal["mask", "exchange", "noise"]
Span = tuple[int, ...]
Pool = Mapping[str, Sequence[int]]
"""Kind of token → ids of such tokens."""
SD = 3.0
"""Noise, in standard deviations of the embeddings."""
CAUSE, ANSWER, EVERY, NULL = "cause", "answer", "all tokens", "random span"
SAID = {"ring": "ring digits", "branch": "branches"}


@dataclass(frozen=True)
class MapSettings:
    """`span`: tokens of the cause. `least`: pairs whose answer the corruption moves by less are dropped, for what is
    recovered is a share of that. `nulls`: random spans a pair. `n_bootstrap`: draws of sequences."""

    corruption: Corruption = "mask"
    span: int = 3
    least: float = 0.1
    nulls: int = 1
    n_bootstrap: int = 1_000
    seed: int = 0

    def __post_init__(self) -> None:
        checked_seed(self.seed)


@dataclass(frozen=True, eq=False)
class Pair:
    """`clean` and `corrupt` hold one sequence, prepared for the answer; `noise` is what corrupts beside tokens.
    `classes`: name → positions, every token in one; `nulls`: random spans. `values`: the answer, clean and corrupt;
    `elsewhere`: by how much it moves, without sign, when a span that shares nothing with the cause is corrupted
    instead, mean over all of them, NaN where there is none."""

    subject: Subject
    answer: Answer
    clean: Batch
    corrupt: Batch
    noise: Plan
    cause: Span
    classes: Mapping[str, Span]
    nulls: tuple[Span, ...]
    values: tuple[float, float]
    elsewhere: float

    @property
    def moved(self) -> float:
        return self.values[0] - self.values[1]


def pair_of(
    domain: Domain, subject: Subject, reading: Reading, clean: Batch, target: Target, settings: MapSettings,
    *, pool: Pool | None = None, against: Batch | None = None, draw: int = 0,
) -> Pair:  # fmt: skip
    """`reading` is of the text as it is, `clean` prepared for `target`. `pool`: tokens to exchange with, by default the
    sequence's own. `against`: another sequence of as many tokens, prepared likewise; what differs is then the cause,
    and its tokens stand for it in the corrupt input. `draw`: number of the pair, for its random choices.

    Raises InputError where no span can be corrupted, SubjectError where the subject cannot be so corrupted.
    """
    answer, rng = Answer.of(target), np.random.default_rng((settings.seed, 11, draw))
    places = answer.places(subject)
    size, given = settings.span, None
    if against is not None:
        given = _differing(clean, against, places)
        size = len(given)
    how: Corruption = "exchange" if against is not None else settings.corruption
    corrupted = corrupter(subject, reading, clean, answer, how, pool or pool_of([(reading, clean)]), rng)
    spans = [s for s in candidates(subject, reading, places, size) if corrupted.can(s)]
    if not spans and given is None:
        raise InputError(f"no run of {size} tokens can be corrupted here: give a longer sequence, or a smaller span.")
    values = corrupted.values([*spans, ()])
    clean_value = float(values[-1])
    if given is None:
        cause = spans[int(np.abs(values[:-1] - clean_value).argmax())]
        corrupt, noise = corrupted.batch(cause), corrupted.plan(cause)
        corrupt_value = float(values[spans.index(cause)])
    else:
        assert against is not None
        cause, corrupt, noise = given, against, Plan()
        corrupt_value = float(with_ids(subject, clean, answer, against.ids))
    free = [i for i, span in enumerate(spans) if not {*span} & {*cause}]
    elsewhere = float(np.abs(values[free] - clean_value).mean()) if free else float("nan")
    drawn = rng.permutation(len(free))[: settings.nulls]
    nulls = tuple(spans[free[int(i)]] for i in drawn)
    classes = position_classes(domain, reading, cause, places)
    both = clean_value, corrupt_value
    return Pair(subject, answer, clean, corrupt, noise, cause, classes, nulls, both, elsewhere)


def candidates(subject: Subject, reading: Reading, places: Sequence[int], size: int) -> list[Span]:
    """Runs of `size` tokens that are neither special nor among `places`; of a causal subject such as it reads before
    the answer."""
    end = min(places, default=len(reading.units)) if subject.predicts_next else len(reading.units)
    free = {p for p, unit in enumerate(reading.units[:end]) if unit.kind != "special"} - {*places}
    runs = (tuple(range(p, p + size)) for p in sorted(free))
    return [run for run in runs if free.issuperset(run)]


def position_classes(domain: Domain, reading: Reading, cause: Span, places: Sequence[int]) -> dict[str, Span]:
    """Every token in one class: the cause, the answer, elements by the side or region that their names tell (see
    `Domain.names`), syntax by its kind, special tokens."""
    names, found = domain.names(reading), {CAUSE: [*cause], ANSWER: [*places]}
    for position, (unit, written) in enumerate(zip(reading.units, reading.elements, strict=True)):
        if position not in cause and position not in places:
            own = names[written[0]] if written else {}
            of = own.get("side") or own.get("region") or "other"
            name = f"{of} {domain.element}s" if written else SAID.get(unit.kind, f"{unit.kind}s")
            found.setdefault("special tokens" if unit.kind == "special" else name, []).append(position)
    return {name: tuple(at) for name, at in found.items() if at}


def pool_of(rows: Iterable[tuple[Reading, Batch]]) -> Pool:
    """Of the tokens that write elements in some sequences."""
    found: dict[str, set[int]] = {}
    for reading, batch in rows:
        for unit, written, token in zip(reading.units, reading.elements, batch.ids[0].tolist(), strict=True):
            if written:
                found.setdefault(unit.kind, set()).add(token)
    return {kind: sorted(ids) for kind, ids in found.items()}


def _differing(clean: Batch, against: Batch, places: Sequence[int]) -> Span:
    if clean.ids.shape != against.ids.shape:
        lengths = clean.ids.shape[1], against.ids.shape[1]
        raise InputError(f"{lengths[0]} tokens against {lengths[1]}: give two sequences of as many tokens.")
    at = torch.nonzero(clean.ids[0] != against.ids[0])[:, 0].tolist()
    if not at or {*at} & {*places}:
        why = "the token that is asked about differs itself" if at else "the two sequences are the same"
        raise InputError(f"{why}: give a second one that differs elsewhere.")
    return tuple(at)


@dataclass(frozen=True, eq=False)
class Corrupter:
    """What becomes of one sequence when some of its tokens are corrupted: `ids [tokens]` stand for them, or, if it is
    not None, `noisy` for their embeddings."""

    subject: Subject
    clean: Batch
    answer: Answer
    ids: Tensor
    noisy: To | None = None

    def can(self, span: Span) -> bool:
        return self.noisy is not None or bool((self.ids[[*span]] != self.clean.ids[0, [*span]]).any())

    def batch(self, span: Span) -> Batch:
        ids = self.clean.ids.clone()
        ids[0, [*span]] = self.ids[[*span]]
        return self.clean.with_ids(ids)

    def plan(self, span: Span) -> Plan:
        if self.noisy is None:
            return Plan()
        return Plan((Intervention(Embeddings(), self.noisy, Select((0,), None, span)),))

    def values(self, spans: Sequence[Span]) -> np.ndarray:
        """The answer `[len(spans)]` with each corrupted by itself."""
        if self.noisy is None:
            ids = torch.cat([self.batch(span).ids for span in spans])
            return with_ids(self.subject, self.clean, self.answer, ids).numpy()
        where = [Select((0,), None, span) for span in spans]
        given = self.subject, Embeddings(), self.noisy.values, self.clean, self.answer, where
        return ablated(*given, complement=False, chunk=128).double().numpy()


def corrupter(
    subject: Subject, reading: Reading, clean: Batch, answer: Answer, how: Corruption, pool: Pool,
    rng: np.random.Generator,
) -> Corrupter:  # fmt: skip
    """Raises SubjectError where the subject cannot be corrupted that way."""
    ids = clean.ids[0].clone()
    if how == "mask":
        if subject.mask_id is None:
            raise SubjectError(f"{subject.source} fills no masks: corrupt by exchange.")
        ids[:] = subject.mask_id
    elif how == "exchange":
        for p, (unit, written) in enumerate(zip(reading.units, reading.elements, strict=True)):
            others = [one for one in pool.get(unit.kind, ()) if one != ids[p]] if written else []
            if others:
                ids[p] = int(rng.choice(others))
    else:
        if len(subject.stack_sizes) > 1:
            raise SubjectError(f"{subject.source} embeds its tokens twice: corrupt by mask or exchange.")
        words, *others = Embeddings().record(subject, clean)[0]
        table = next(subject.embeddings[0].module.parameters())
        drawn = torch.from_numpy(rng.standard_normal(tuple(words.shape))).to(words)
        return Corrupter(subject, clean, answer, ids, To((words + SD * table.std() * drawn, *others)))
    return Corrupter(subject, clean, answer, ids)
