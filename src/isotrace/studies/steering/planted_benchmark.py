"""Is the benchmark calibrated? What a trial says of right, shuffled and confounded labels in the planted world, where
the property is counted and the answer is known, and whether what is counted is what was done.

A direction of noise is no weak direction at an equal dose: its share along A is blown up with the rest and moves all
starts of a trial to one side. So labels are drawn anew, and what is told is over the trials, not over their starts. Nor
is no effect 0: a random direction raises some other residues, and with them lowers the property a little. So the effect
also stands beside those of random twins, and what a trial claims is its rank among them
and among edits of the other nulls.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import binomtest
from torch import nn

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress
from isotrace.interventions import MLPs, Plan
from isotrace.stats.bootstrap import mean_interval
from isotrace.steering import Calibrated, Edits
from isotrace.steering.contrast import Contrast
from isotrace.steering.decoding.decoder import DECODERS
from isotrace.steering.decoding.run import Designs
from isotrace.steering.dose import Dose
from isotrace.steering.questions import Questions
from isotrace.steering.trials.judge import Exact
from isotrace.steering.trials.settings import Confounds, TrialSettings
from isotrace.steering.trials.trial import Trial, trial
from isotrace.steering.trials.twins import USUAL
from isotrace.studies.worlds.planted_steering import World, contrast_of, sequences, share

DOSE = 0.1
"""Nats."""
LEVEL = 0.05
"""p at which a trial claims that its direction does more than random ones."""
COARSE = tuple(2.0**i for i in range(-4, 7))
"""Strengths that are scanned."""


@dataclass(frozen=True)
class Size:
    """`sequences` of a contrast; `starts`, `designs` of each; `twins` of A, and of every trial of labels
    (`label_twins`); trials of `right` labels, of `shuffled` ones and of `confounded` ones."""

    sequences: int
    starts: int
    designs: int
    twins: int
    label_twins: int
    right: int
    shuffled: int
    confounded: int


def written(world: World, edits: Edits | None, starts: Sequence[str], size: Size, seed: int) -> Designs:
    """At the dose of `edits`; None: unsteered."""
    return DECODERS["gibbs"](n=size.designs, seed=seed)(
        world.subject, starts, Plan() if edits is None else edits.plan()
    )


def means(designs: Designs) -> np.ndarray:
    """float64 `[starts]`: mean of the property over the designs of each."""
    found: dict[int, list[float]] = {}
    for row in designs.rows:
        found.setdefault(row.start, []).append(share(row.sequence))
    return np.asarray([np.mean(found[start]) for start in sorted(found)])


def dosed(edits: Edits, asked: Questions) -> Edits:
    """At DOSE, or where it is not reached at the largest strength of COARSE."""
    dose = Dose(edits, asked)
    try:
        return replace(edits, dose=dose.reach(DOSE, COARSE))
    except InputError:
        return replace(edits, dose=Calibrated(COARSE[-1], dose.at(COARSE[-1]), DOSE))


def label_rows(
    world: World, size: Size, seed: int, progress: Progress, kinds: "Sequence[Kind] | None" = None
) -> list[dict[str, Any]]:
    """A row for each kind of labels: over trials with data, labels and starts of their own, the mean effect at DOSE,
    see `summed`, the same less the mean of random directions in the trials that know it, in how many trials p of its
    rank is LEVEL or less (`claimed` among twins of all nulls, `NULL_claimed` of one, with exact intervals; None where
    there are too few twins), and in how many the interval over starts leaves 0 (`clear`)."""
    table = []
    for kind in KINDS if kinds is None else kinds:
        n = getattr(size, kind.size)
        effects, twins, clear = np.zeros(n), np.full(n, np.nan), 0
        p = {name: np.ones(n) for name in ("", *USUAL)}
        for number in progress(range(n), f"{kind.labels}, {kind.confounds}"):
            own = seed * 1_000 + number
            found = _trial(world, kind, size, own)
            (arm,) = found.arms[1:]
            low, high = mean_interval(arm.effects, own)
            clear += low > 0 or high < 0
            effects[number] = arm.effect
            if len(known := found.twins.at(DOSE, "random")):
                twins[number] = known.mean()
            for name, values in p.items():
                values[number] = found.twins.p(arm, name or None)
        over = summed((effects - twins)[np.isfinite(twins)], seed)
        row = {"labels": kind.labels, "confounds": kind.confounds} | summed(effects, seed)
        row |= {f"over_twins_{name}": value for name, value in over.items()}
        for name, values in p.items():
            row |= {f"{name}_{key}".strip("_"): v for key, v in claims(values, size.label_twins).items()}
        table.append(row | {"clear": clear})
    return table


def claims(p: np.ndarray, n_twins: int) -> dict[str, Any]:
    """Of p of every trial `[trials]`, NaN of one that claims nothing."""
    if 1 / (1 + n_twins) > LEVEL:
        return {"claimed": None, "claimed_rate_ci": None}
    claimed = int((p <= LEVEL).sum())
    exact = binomtest(claimed, len(p)).proportion_ci(method="exact")
    return {"claimed": claimed, "claimed_rate_ci": [exact.low, exact.high]}


def summed(effects: np.ndarray, seed: int) -> dict[str, Any]:
    """Of the mean effect of each trial `[trials]`."""
    wins, losses = int((effects > 0).sum()), int((effects < 0).sum())
    exact = binomtest(wins, wins + losses).proportion_ci(method="exact") if wins + losses else None
    return {
        "trials": len(effects),
        "effect": float(effects.mean()),
        "effect_ci": list(mean_interval(effects, seed)),
        "wins": wins,
        "win_rate": wins / (wins + losses) if exact else float("nan"),
        "win_rate_ci": [exact.low, exact.high] if exact else [float("nan")] * 2,
    }


def _trial(world: World, kind: "Kind", size: Size, seed: int) -> Trial:
    settings = TrialSettings(
        "difference_in_means", (world.layer,), kind.confounds, (DOSE,), size.designs, size.starts, n_development=2,
        n_twins=size.label_twins, seed=seed,
    )  # fmt: skip
    contrast = kind.make(world, size.sequences, seed)
    return trial(world.subject, contrast, settings, components=MLPs(), exact=Exact(share), nulls=USUAL)


def _right(world: World, n: int, seed: int) -> Contrast:
    return contrast_of(world.subject, sequences(n, seed))


def _shuffled(world: World, n: int, seed: int) -> Contrast:
    return _right(world, n, seed).shuffled(seed)


def _length(world: World, n: int, seed: int) -> Contrast:
    """The label is the length, and as much noise."""
    texts, rng = sequences(n, seed), np.random.default_rng((seed, 25))
    lengths = np.asarray([len(text) for text in texts], np.float64)
    return contrast_of(world.subject, texts, (lengths + lengths.std() * rng.normal(size=n)).tolist())


@dataclass(frozen=True)
class Kind:
    """`size`: the field of `Size` that says how many trials."""

    labels: str
    confounds: Confounds
    size: str
    make: Callable[[World, int, int], Contrast]


KINDS = (
    Kind("right", "residual", "right", _right),
    Kind("shuffled", "residual", "shuffled", _shuffled),
    Kind("length and noise", "free", "confounded", _length),
    Kind("length and noise", "match", "confounded", _length),
)


def ledger_rows(world: World, edits: Edits, starts: Sequence[str], size: Size, seed: int) -> list[dict[str, Any]]:
    """What generator and judge count, beside what is counted by hand: sequences × passes at the subject's embedding,
    and distinct designs; and whether α = 0 writes what the unsteered subject writes, best of each start and all."""
    rows, passed = [], Counter[str]()
    name = "steered"

    def count(_: nn.Module, args: tuple[Any, ...]) -> None:
        passed[name] += len(args[0])

    hook = world.subject.embeddings[0].module.register_forward_pre_hook(count)
    try:
        found = {}
        for name, plan in (("steered", edits.plan()), ("α = 0", edits.plan(0.0)), ("unsteered", Plan())):
            found[name] = DECODERS["gibbs"](n=size.designs, seed=seed)(world.subject, starts, plan)
    finally:
        hook.remove()
    for name, designs in found.items():
        distinct = {row.sequence for row in designs.rows}
        asked = sum(len(start) * size.designs for start in starts)  # a site a step, as many steps as there are sites
        best = [max(share(r.sequence) for r in designs.rows if r.start == i) for i in range(len(starts))]
        plain = [max(share(r.sequence) for r in found["unsteered"].rows if r.start == i) for i in range(len(starts))]
        rows.append({
            "designs": name, "forwards": designs.forwards, "forwards_seen": passed[name], "forwards_by_hand": asked,
            "calls": designs.distinct, "calls_by_hand": len(distinct), "starts": len(starts),
            "ties": sum(a == b for a, b in zip(best, plain, strict=True)),
            "same_designs": designs.rows == found["unsteered"].rows,
        })  # fmt: skip
    return rows
