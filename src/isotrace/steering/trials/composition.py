"""Composition control: how much of an effect is left once length, counts of tokens, and what was inserted most are out.

regressed  what the judge says of natural sequences that are told, and that it was not fitted on, is regressed on
           their length and counts of tokens (ridge, penalty by leaving one out); of designs the rest is compared.
           Not on the judge's own sequences: what a forest says of those is nearly their label, its slopes are too
           steep for designs. Not on unsteered designs: there are fewer of them than counts.
without    the two tokens, of those that write an atom or residue, that steered designs insert most beyond unsteered
           ones are taken out of every design of either arm: those that its alignment with the start shows as new are
           put back as they were, or deleted, all at once where the parser takes that, else one after the other where
           it does
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
from sklearn.linear_model import RidgeCV

from isotrace.datasets.annotated import read
from isotrace.domains.domain import Domain, is_valid
from isotrace.stats.bootstrap import bootstrap_weights, interval, mean_interval
from isotrace.steering.contrast import Contrast, counts
from isotrace.steering.decoding.run import Design
from isotrace.steering.trials.arm import Arm, Workshop, start_means

MOST = 2
"""Inserted tokens that are left out."""
PENALTIES = tuple(np.logspace(-2, 4, 13))


@dataclass(frozen=True)
class Part:
    """What is left of an effect: its mean over starts, `kept` as a share of the whole effect of the same starts, both
    with 95 % intervals over starts."""

    effect: float
    ci: tuple[float, float]
    kept: float
    kept_ci: tuple[float, float]
    starts: int


@dataclass(frozen=True)
class Composition:
    """At `dose`. `explained`: share of the variance over `natural` sequences that counts explain, each left out in
    turn. `tokens`: those taken out; `undone`: share of their insertions that could be, in steered designs, NaN of
    none."""

    dose: float
    regressed: Part
    explained: float
    natural: int
    without: Part
    tokens: tuple[str, ...]
    undone: float


def composition(workshop: Workshop, told: Contrast, plain: Arm, steered: Arm) -> Composition:
    """`told`: natural sequences, none of which the judge was fitted on."""
    by_counts, explained, natural = _regressed(workshop, told, (plain, steered))
    tokens = most_inserted(workshop, plain, steered)
    (before, _), (after, undone) = (_without(workshop, arm, tokens) for arm in (plain, steered))
    seed = workshop.settings.seed
    regressed, without = (part(steered.effects, left, seed) for left in (by_counts, after - before))
    return Composition(steered.dose, regressed, explained, natural, without, tokens, undone)


def part(whole: np.ndarray, left: np.ndarray, seed: int, n_draws: int = 2_000) -> Part:
    """Of effects `[starts]`, NaN where there is none."""
    both = np.isfinite(whole) & np.isfinite(left)
    whole, left = whole[both], left[both]
    nan = float("nan")
    if not len(left):
        return Part(nan, (nan, nan), nan, (nan, nan), 0)
    drawn = bootstrap_weights(len(left), n_draws, (seed, 18))
    with np.errstate(divide="ignore", invalid="ignore"):
        share, draws = left.sum() / whole.sum(), (drawn @ left) / (drawn @ whole)
    ends = interval(draws) if len(left) > 1 else (nan, nan)
    return Part(float(left.mean()), mean_interval(left, seed), float(share), ends, len(left))


def most_inserted(workshop: Workshop, plain: Arm, steered: Arm) -> tuple[str, ...]:
    """The tokens that a steered design has more often in new places than an unsteered one, the two furthest ahead; of
    those that write an atom or residue, since signs of syntax come and go with what they join."""
    rates: list[Counter[str]] = []
    for arm in (plain, steered):
        valid, found = [row for row in arm.rows if row.valid], Counter[str]()
        for row in valid:
            before, after = _texts(workshop, row)
            reading = read(workshop.subject, workshop.domain, row.sequence)[1]
            writes = [bool(e) for u, e in zip(reading.units, reading.elements, strict=True) if u.start < u.end]
            found.update(after[place] for place, _ in inserted(before, after) if writes[place])
        rates.append(Counter({token: n / len(valid) for token, n in found.items()}))
    ahead = {token: rate - rates[0][token] for token, rate in rates[1].items() if rate > rates[0][token]}
    return tuple(sorted(ahead, key=lambda token: (-ahead[token], token))[:MOST])


def inserted(before: Sequence[str], after: Sequence[str]) -> list[tuple[int, str]]:
    """(place in `after`, what stood there before: nothing where there was nothing) of every new token."""
    found = []
    for tag, a, b, c, d in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag in ("insert", "replace"):
            found += [(place, before[a + place - c] if b - a == d - c else "") for place in range(c, d)]
    return found


def undo(domain: Domain, before: Sequence[str], after: Sequence[str], tokens: Sequence[str]) -> tuple[str, int, int]:
    """(`after` without its insertions of `tokens` as far as the parser of `domain` takes it, how many are undone, how
    many there were)."""
    places = [(place, back) for place, back in inserted(before, after) if after[place] in tokens]
    whole = [*after]
    for place, back in places:
        whole[place] = back
    if is_valid(domain, "".join(whole)):
        return "".join(whole), len(places), len(places)
    kept, undone = [*after], 0
    for place, back in places:
        tried = [*kept[:place], back, *kept[place + 1 :]]
        if is_valid(domain, "".join(tried)):
            kept, undone = tried, undone + 1
    return "".join(kept), undone, len(places)


def _regressed(workshop: Workshop, told: Contrast, arms: tuple[Arm, Arm]) -> tuple[np.ndarray, float, int]:
    """Effects `[starts]` on what counts do not explain, the share that they do, over how many sequences."""
    said, names = workshop.judge([e.text for e in told.examples]), [*told.confounds]
    known = np.isfinite(said)
    x, y = np.stack([told.confounds[name] for name in names], 1)[known], said[known]
    if len(y) < 3 or y.std() == 0:
        return np.full(len(workshop.starts), np.nan), float("nan"), len(y)
    middle, spread = x.mean(0), np.maximum(x.std(0), 1e-12)
    ridge = RidgeCV(PENALTIES).fit((x - middle) / spread, y)  # its best score: less the mean square of those left out
    means = []
    for arm in arms:
        left = arm.values.copy()
        for i, row in enumerate(arm.rows):
            if row.valid:
                found = counts(workshop.subject, workshop.domain, row.sequence)
                z = (np.asarray([found[name] for name in names]) - middle) / spread
                left[i] -= ridge.predict(z[None])[0]
        means.append(start_means(arm.rows, left, len(workshop.starts)))
    return means[1] - means[0], float(1 + ridge.best_score_ / y.var()), len(y)


def _without(workshop: Workshop, arm: Arm, tokens: Sequence[str]) -> tuple[np.ndarray, float]:
    """Means `[starts]` of what the judge says of the designs without insertions of `tokens`, the share undone."""
    valid = [row for row in arm.rows if row.valid]
    found = [undo(workshop.domain, *_texts(workshop, row), tokens) for row in valid]
    undone, asked = sum(n for _, n, _ in found), sum(n for _, _, n in found)
    means = start_means(valid, workshop.judge([text for text, *_ in found]), len(workshop.starts))
    return means, undone / asked if asked else float("nan")


def _texts(workshop: Workshop, row: Design) -> tuple[list[str], list[str]]:
    """What is written, token by token, in the start, which need not parse, and in the design."""
    texts = workshop.starts[row.start], row.sequence
    before, after = ([t[a:b] for a, b in workshop.subject.tokenize([t]).offsets[0] if a < b] for t in texts)
    return before, after
