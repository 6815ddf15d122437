"""Is the benchmark calibrated? What a trial says of right, shuffled and confounded labels in the planted world, where
the property is counted and the answer is known, and whether what is counted is what was done.

A direction of noise is no weak direction at an equal dose: its share along A is blown up with the rest and moves all
starts of a trial to one side. So labels are drawn anew, and what is told is over the trials, not over their starts. Nor
is no effect 0: a random direction raises some other residues, and with them lowers the property a little. So the effect
also stands beside that of a random twin.
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
from isotrace.steering.trials.trial import calibration, trial
from isotrace.studies.worlds.planted_steering import World, contrast_of, sequences, share

DOSE = 0.1
"""Nats."""
COARSE = tuple(2.0**i for i in range(-4, 7))
"""Strengths that are scanned."""


@dataclass(frozen=True)
class Size:
    """`sequences` of a contrast; `starts`, `designs` of each; `twins`; trials of `right` labels, of `shuffled` ones and
    of `confounded` ones."""

    sequences: int
    starts: int
    designs: int
    twins: int
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
    see `summed`, the same less that of a random twin of the same trial, and in how many trials the interval over starts
    leaves 0 (`clear`)."""
    table = []
    for kind in KINDS if kinds is None else kinds:
        n = getattr(size, kind.size)
        effects, twins, clear = np.zeros(n), np.zeros(n), 0
        for number in progress(range(n), f"{kind.labels}, {kind.confounds}"):
            own = seed * 1_000 + number
            found, beside = _effects(world, kind, size, own)
            low, high = mean_interval(found, own)
            clear += low > 0 or high < 0
            effects[number], twins[number] = found.mean(), beside.mean()
        over = {f"over_twin_{name}": value for name, value in summed(effects - twins, seed).items() if name != "trials"}
        table.append(
            {"labels": kind.labels, "confounds": kind.confounds} | summed(effects, seed) | over | {"clear": clear}
        )
    return table


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


def _effects(world: World, kind: "Kind", size: Size, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the fitted direction and of a random twin, `[starts]` each, at DOSE."""
    contrast = kind.make(world, size.sequences, seed)
    settings = TrialSettings(
        "difference_in_means", (world.layer,), kind.confounds, (DOSE,), size.designs, size.starts, n_development=2,
        n_twins=0, seed=seed,
    )  # fmt: skip
    found = trial(world.subject, contrast, settings, components=MLPs(), exact=Exact(share))
    plain = found.arms[0].designs
    assert plain is not None  # the unsteered arm is always made
    twin = dosed(found.edits.twin(seed), Questions.of(world.subject, [calibration(world.subject, contrast, seed)]))
    return found.arms[-1].effects, means(written(world, twin, found.starts, size, seed)) - means(plain)


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
