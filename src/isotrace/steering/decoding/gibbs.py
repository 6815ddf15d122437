"""Gibbs moves: one site at a time is masked and drawn anew.

A step picks a site at random, masks it, and draws its token from p(· | all others)^(1/T). Each design is the end of a
chain of its own, which began at the start and ran `sweeps` sweeps of as many steps as there are sites: that is its
burn-in. The conditionals of a masked language model belong to no joint distribution, so this proposes sequences and
claims no stationary law. In molecules a share of the steps (`indels`) inserts a token, a mask in a gap at a mutable
token that is then filled, or takes one away, half each; and a step whose result the parser does not take is undone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from isotrace.base.errors import InputError
from isotrace.steering.decoding.decoder import DECODERS, Decoder
from isotrace.steering.decoding.run import Design, Random, Run, Start


@dataclass
class Chain:
    """`free[i]`: token i may change."""

    ids: list[int]
    free: list[bool]
    random: Random

    def places(self) -> list[int]:
        return [i for i, free in enumerate(self.free) if free]


@DECODERS.named("gibbs")
@dataclass(frozen=True, kw_only=True)
class Gibbs(Decoder):
    """sweeps: of a chain. indels: share of the steps, in molecules only, that insert or delete. A round is a sweep."""

    sweeps: int = 1
    indels: float = 0.3

    objectives: ClassVar[tuple[str, ...]] = ("masked",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sweeps < 1 or not 0 <= self.indels <= 1:
            raise InputError(f"{self.sweeps} sweeps with a share {self.indels} of indels are no chain: ≥ 1, 0 to 1.")

    def designs(self, run: Run, start: Start) -> Iterator[Design]:
        free = [i in start.sites for i in range(len(start.ids))]
        chains = [Chain([*start.ids], [*free], run.random(start, k)) for k in range(self.n)]
        for sweep in range(1, self.sweeps + 1):
            steps = [sum(chain.free) for chain in chains]
            for step in range(max(steps)):
                self._step(run, start, [c for c, n in zip(chains, steps, strict=True) if step < n], sweep)
        yield from (run.design(start, chain.ids, self.sweeps) for chain in chains)

    def _step(self, run: Run, start: Start, chains: list[Chain], sweep: int) -> None:
        molecule, mask = run.domain.element == "atom", run.subject.mask_id
        assert mask is not None  # `prepare_prediction` needs it too, and a masked subject without it takes no targets
        filled: list[tuple[Chain, list[int], list[bool], int]] = []
        for chain in chains:
            places = chain.places()
            place = places[chain.random.integers(len(places))]
            move = chain.random.random() if molecule else 1.0
            ids, free = [*chain.ids], [*chain.free]
            if move < self.indels / 2:
                if len(places) > 1:
                    del ids[place], free[place]
                    self._keep(run, chain, ids, free)
            elif move < self.indels:
                place += int(chain.random.integers(2))
                if len(ids) < run.subject.max_tokens:
                    ids.insert(place, mask)
                    free.insert(place, True)
                    filled.append((chain, ids, free, place))
            else:
                ids[place] = mask
                filled.append((chain, ids, free, place))
        if not filled:
            return
        _, rows, allowed, places = zip(*filled, strict=True)
        logits = run.read(start, rows, [[place] for place in places], sweep, allowed)
        for (chain, ids, free, place), own in zip(filled, logits, strict=True):
            (ids[place],) = run.drawn(run.allowed(own), [chain.random])
            if molecule:
                self._keep(run, chain, ids, free)
            else:
                chain.ids, chain.free = ids, free

    def _keep(self, run: Run, chain: Chain, ids: list[int], free: list[bool]) -> None:
        """Where the parser takes it."""
        if run.check(run.text(ids)) is None:
            chain.ids, chain.free = ids, free
