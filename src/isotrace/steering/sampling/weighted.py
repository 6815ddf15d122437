"""Sequences from a changed target, by particles with weights (sequential Monte Carlo; Feynman–Kac correctors).

`anneal`   p^β              each place from q^β/Σ q^β, log weight + log Σ q^β
`product`  p₁^a p₂^b        likewise from q₁^a q₂^b
`reward`   p e^{βr}         *plain*: from q, log weight + β_t r̂_t − β_{t−1} r̂_{t−1};
                            *tilted*: from q(v) e^{β_t (r̂(v) − r̂_{t−1})}/Z_t, log weight + log Z_t +
            (β_t − β_{t−1}) r̂_{t−1}

q is the conditional of a place given what is filled in, r̂_t a cheap estimate of the reward of what is filled in, β_t
rises evenly to β. The reward itself is asked once for each finished particle and corrects the estimate: log weight +
β (r − r̂_T), so that neither way of sampling asks for the reward of what is not finished. Where the effective sample
size falls below half of the particles they are drawn anew (systematic resampling); weights that are not spent so are
kept, and count at the end. For conditionals of one joint law, in any order that does not depend on the particle, the
weighted particles are exact: sums over them converge to those over the target, and the mean weight to its partition
function. The conditionals of a masked language model are of no joint law, so the target depends on the order: `spread`
says how much. In the order of confidence every particle goes its own way, and nothing exact is claimed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.settings import checked_seed
from isotrace.steering.sampling.conditionals import OPEN, Conditionals

Order = Literal["left_to_right", "random", "confidence"]
Reward = Callable[[Tensor], Tensor]
"""filled `[n, places]` → float64 `[n]`; an estimate is also asked of rows with open places."""


@dataclass(frozen=True)
class Anneal:
    """p^`beta`."""

    beta: float


@dataclass(frozen=True, eq=False)
class Product:
    """p₁^`a` p₂^`b` with `other` for p₂. Raises InputError, in `weighted`, where the two do not share their places and
    words."""

    other: Conditionals
    a: float = 1.0
    b: float = 1.0


@dataclass(frozen=True, eq=False)
class Rewarded:
    """p e^{`beta` r}. `estimate`: r̂; `tilted`: it also steers the draws, for as many estimates a place as there are
    words."""

    reward: Reward
    estimate: Reward
    beta: float
    tilted: bool = False


Target = Anneal | Product | Rewarded


@dataclass(frozen=True)
class Settings:
    """resample_below: share of the particles that the effective sample size must keep; 0 never resamples."""

    n: int = 100
    order: Order = "left_to_right"
    resample_below: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        if self.n < 1 or not 0 <= self.resample_below <= 1:
            raise InputError(f"{self.n} particles, resampled below {self.resample_below}: at least 1, from 0 to 1.")


@dataclass(frozen=True, eq=False)
class Particles:
    """`filled [n, places]`, `log_weights [n]` float64. `order`: in which places were filled; None by confidence.
    `effective`: effective sample size after every place, before it was resampled, the last one with the reward.
    `resampled`: whether it was, which it is not behind the last. `forwards`: sequences × passes;
    `oracle_calls`: finished particles that the reward was asked of."""

    filled: Tensor
    log_weights: Tensor
    order: tuple[int, ...] | None
    effective: tuple[float, ...]
    resampled: tuple[bool, ...]
    forwards: int
    oracle_calls: int
    rewards: Tensor | None = field(default=None)

    @property
    def weights(self) -> Tensor:
        """Normalised."""
        return self.log_weights.softmax(0)

    @property
    def log_partition(self) -> float:
        """log of the mean weight."""
        return float(self.log_weights.logsumexp(0) - torch.tensor(float(len(self.filled))).log())

    def mean(self, values: Tensor) -> float:
        """Under the target, of `values [n]`."""
        return float((self.weights * values.double()).sum())


@torch.no_grad()
def weighted(conditionals: Conditionals, target: Target, settings: Settings = Settings()) -> Particles:
    """Raises InputError for an order that the conditionals do not allow, and for a product of unlike ones."""
    _check(conditionals, target, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    n, places = settings.n, conditionals.n_places
    other = target.other if isinstance(target, Product) else None
    before = conditionals.forwards + (0 if other is None else other.forwards)
    order = None
    if settings.order != "confidence":
        drawn = torch.randperm(places, generator=generator) if settings.order == "random" else torch.arange(places)
        order = tuple(drawn.tolist())
    filled = torch.full((n, places), OPEN)
    log_weights, estimate = torch.zeros(n, dtype=torch.float64), None
    if isinstance(target, Rewarded):
        estimate = target.estimate(filled[:1]).double().expand(n)
    effective: list[float] = []
    resampled: list[bool] = []
    for step in range(places):
        if order is None:
            place, log_q = _surest(conditionals, filled)
        else:
            place = torch.full((n,), order[step])
            log_q = conditionals.log_p(filled, place[:, None])[:, 0]
        if isinstance(target, Rewarded):
            assert estimate is not None
            filled, gained, estimate = _rewarded(target, filled, place, log_q, estimate, step, generator)
        else:
            log_q = target.beta * log_q if isinstance(target, Anneal) else _product(target, log_q, filled, place)
            gained = log_q.logsumexp(-1)
            filled = _put(filled, place, _drawn(log_q.softmax(-1), generator))
        log_weights = log_weights + gained
        effective.append(_effective(log_weights))
        resampled.append(step < places - 1 and effective[-1] < settings.resample_below * n)
        if resampled[-1]:
            kept = systematic(log_weights.softmax(0), generator)
            filled, estimate = filled[kept], None if estimate is None else estimate[kept]
            log_weights = (log_weights.logsumexp(0) - torch.tensor(float(n)).log()).expand(n)
    rewards = None
    if isinstance(target, Rewarded):
        assert estimate is not None
        rewards = target.reward(filled).double()
        log_weights = log_weights + target.beta * (rewards - estimate)
        effective[-1] = _effective(log_weights)
    forwards = conditionals.forwards + (0 if other is None else other.forwards) - before
    calls = 0 if rewards is None else n
    return Particles(filled, log_weights, order, tuple(effective), tuple(resampled), forwards, calls, rewards)


def spread(
    conditionals: Conditionals, target: Target, value: Callable[[Tensor], Tensor], seeds: Sequence[int],
    settings: Settings = Settings(order="random"),
) -> list[float]:  # fmt: skip
    """The mean of `value(filled)` under the target in one random order for each seed: they differ by chance alone where
    the conditionals are of one joint law, and by more where they are not."""
    found = [weighted(conditionals, target, replace(settings, order="random", seed=seed)) for seed in seeds]
    return [one.mean(value(one.filled)) for one in found]


def systematic(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Which of the particles go on, int64 `[n]`: one uniform number places n evenly spaced ones in the cumulated
    `weights [n]`, so that each is taken ⌊n w⌋ or ⌈n w⌉ times."""
    n = len(weights)
    at = (torch.arange(n, dtype=torch.float64) + torch.rand(1, generator=generator, dtype=torch.float64)) / n
    cumulated = weights.double().cumsum(0)
    return torch.searchsorted(cumulated / cumulated[-1], at, right=True).clamp(max=n - 1)


def _effective(log_weights: Tensor) -> float:
    return float((2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp())


def _check(conditionals: Conditionals, target: Target, settings: Settings) -> None:
    if conditionals.ordered and settings.order != "left_to_right":
        raise InputError(f"these conditionals are known from left to right only, not in the order {settings.order!r}.")
    if isinstance(target, Product):
        shapes = [(one.n_places, one.n_words) for one in (conditionals, target.other)]
        if shapes[0] != shapes[1]:
            raise InputError(
                f"a product needs the same places and words of both, here {shapes[0]} and {shapes[1]}: give subjects "
                "of one tokenizer."
            )


def _surest(conditionals: Conditionals, filled: Tensor) -> tuple[Tensor, Tensor]:
    """(place `[n]` of lowest entropy, log q `[n, words]` there) of every particle."""
    open_places = (filled == OPEN).nonzero()[:, 1].view(len(filled), -1)
    log_q = conditionals.log_p(filled, open_places)
    entropy = -(log_q.exp() * log_q.clamp(min=-1e30)).sum(-1)
    first, rows = entropy.argmin(-1), torch.arange(len(filled))
    return open_places[rows, first], log_q[rows, first]


def _product(target: Product, log_q: Tensor, filled: Tensor, place: Tensor) -> Tensor:
    second = target.other.log_p(filled, place[:, None])[:, 0]
    return torch.where(log_q.isneginf() | second.isneginf(), -torch.inf, target.a * log_q + target.b * second)


def _rewarded(
    target: Rewarded, filled: Tensor, place: Tensor, log_q: Tensor, before: Tensor, step: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(filled, gained log weight `[n]`, estimates `[n]`). Nothing is weighed of the first estimate, of no place."""
    n, places = filled.shape
    last, now = (target.beta * k / places for k in (step, step + 1))
    if not target.tilted:
        filled = _put(filled, place, _drawn(log_q.softmax(-1), generator))
        after = target.estimate(filled).double()
        return filled, now * after - last * before, after
    words = torch.arange(log_q.shape[-1])
    every = _put(filled.repeat_interleave(len(words), 0), place.repeat_interleave(len(words)), words.repeat(n))
    of_word = target.estimate(every).double().view(n, -1)
    tilted = log_q + now * (of_word - before[:, None])
    word = _drawn(tilted.softmax(-1), generator)
    gained = tilted.logsumexp(-1) + (now - last) * before
    return _put(filled, place, word), gained, of_word.gather(1, word[:, None])[:, 0]


def _put(filled: Tensor, place: Tensor, word: Tensor) -> Tensor:
    return filled.scatter(1, place[:, None], word[:, None])


def _drawn(p: Tensor, generator: torch.Generator) -> Tensor:
    """One of every row of `p [n, words]`."""
    cumulated = p.cumsum(-1)
    at = torch.rand(len(p), 1, generator=generator, dtype=torch.float64) * cumulated[:, -1:]
    return (cumulated <= at).sum(-1)
