"""Opposing signals: small groups of samples that share something large and pull against each other.

1. record    the loss of every sample at every full-batch step; Δℓ_i = ℓ_i(θ_{t+1}) − ℓ_i(θ_t)
2. spikes    the 5 % of the steps with the largest ‖Δℓ‖
3. sides     steps are turned so that they agree with the first direction of Δℓ over the spikes; a sample's score is its
             mean turned Δℓ. The 1 % with the largest and the 1 % with the smallest score are the two sides
4. confirm   cosine of the mean gradients of the sides, and the share of as many random samples whose mean gradient is
             shorter, at the largest spike; how many of the 2 % of samples that change most stay the same from spike to
             spike (Jaccard), beside steps at random times

After Rosenfeld and Risteski 2023 (arXiv:2311.04163). Planted: logistic regression of one direction of many, where two
groups of 0.5 % share one large token and have opposite labels. Controls: no token, and the token with equal labels.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import expit

from isotrace.stats.bootstrap import mean_interval
from isotrace.stats.metrics import auroc
from isotrace.studies.study import Outcome, Setting, study

SAMPLES, DIM, GROUP, STEPS, RATE = 2_000, 20, 0.005, 300, 1.0
SPIKES, SIDE, N_RANDOM = 0.05, 0.01, 200
WORLDS: dict[str, tuple[float, bool]] = {
    "token of 40, opposite labels": (40.0, True), "token of 30, opposite labels": (30.0, True),
    "token of 3, opposite labels": (3.0, True), "token of 30, equal labels": (30.0, False), "no token": (0.0, True),
}  # fmt: skip
"""Name → (size of the shared token, whether the groups' labels are opposite)."""


@dataclass(frozen=True, eq=False)
class World:
    """`x [n, d]`, `y [n]` 0 or 1, `group [n]`: 1 and −1 the two groups, 0 all others."""

    x: np.ndarray
    y: np.ndarray
    group: np.ndarray


@dataclass(frozen=True, eq=False)
class Found:
    """`score [n]`: mean turned Δℓ over the `spikes` (steps). cosine, rarer: of the sides' mean gradients; `rarer`: the
    smaller of the two shares of random sets with a shorter one. stays, stays_null: Jaccard from spike to spike."""

    score: np.ndarray
    spikes: np.ndarray
    cosine: float
    rarer: float
    stays: np.ndarray
    stays_null: np.ndarray


def world(token: float, opposite: bool, seed: int) -> World:
    """The first column is the token, `token` in both groups and 0 elsewhere; labels of the others follow a plane."""
    rng = np.random.default_rng(seed)
    x, n = rng.standard_normal((SAMPLES, DIM)), round(GROUP * SAMPLES)
    y = (x[:, 1:] @ rng.standard_normal(DIM - 1) > 0).astype(float)
    group = np.zeros(SAMPLES, dtype=np.int64)
    group[rng.permutation(SAMPLES)[: 2 * n]] = np.repeat([1, -1], n)
    y[group == 1], y[group == -1] = 1, 0 if opposite else 1
    x[:, 0] = token * (group != 0)
    return World(x, y, group)


def trained(given: World) -> tuple[np.ndarray, np.ndarray]:
    """(losses `[STEPS + 1, n]` nats, weights `[STEPS + 1, d]`) of logistic regression by full-batch descent."""
    weight, losses, weights = np.zeros(given.x.shape[1]), [], []
    for _ in range(STEPS + 1):
        z = given.x @ weight
        losses.append(np.logaddexp(0, z) - given.y * z)
        weights.append(weight)
        weight = weight - RATE * given.x.T @ (expit(z) - given.y) / len(z)
    return np.stack(losses), np.stack(weights)


def opposing(given: World, seed: int) -> Found:
    losses, weights = trained(given)
    change, rng = np.diff(losses, axis=0), np.random.default_rng((seed, 1))
    size = np.linalg.norm(change, axis=1)
    spikes = np.sort(np.argsort(-size)[: round(SPIKES * len(size))])
    at = change[spikes]
    first = np.linalg.svd(at, full_matrices=False)[2][0]
    score = (np.sign(at @ first)[:, None] * at).mean(0)
    order, n = np.argsort(score), round(SIDE * len(score))
    step = int(size.argmax())
    gradients = (expit(given.x @ weights[step]) - given.y)[:, None] * given.x
    low, high = (gradients[rows].mean(0) for rows in (order[:n], order[-n:]))
    norms = [np.linalg.norm(gradients[rng.permutation(len(score))[:n]].mean(0)) for _ in range(N_RANDOM)]
    rarer = min(float((norms < np.linalg.norm(side)).mean()) for side in (low, high))
    cosine = float(low @ high / (np.linalg.norm(low) * np.linalg.norm(high)))
    times = rng.permutation(len(size))[: len(spikes)]
    return Found(score, spikes, cosine, rarer, _stays(at), _stays(change[times]))


def _stays(change: np.ndarray) -> np.ndarray:
    """Jaccard `[steps − 1]` of the 2 · SIDE of samples that change most, from one step of `change [steps, n]` to the
    next."""
    n = round(2 * SIDE * change.shape[1])
    members = [set(np.argsort(-np.abs(row))[:n].tolist()) for row in change]
    return np.array([len(a & b) / len(a | b) for a, b in pairwise(members)])


def recovered(given: World, found: Found) -> tuple[float, float]:
    """AUROC of each group against all that are in neither by the score, in the direction in which the groups stand: one
    at each end."""
    mean = [found.score[given.group == side].mean() for side in (1, -1)]
    turned = found.score if mean[0] >= mean[1] else -found.score
    areas = []
    for side in (1, -1):
        rows = (given.group == side) | (given.group == 0)
        truth = (given.group[rows] == side).astype(float)
        areas.append(float(auroc(side * turned[rows, None], truth, np.ones((1, len(truth))))[0]))
    return areas[0], areas[1]


@study("opposing", "small groups that pull against each other, planted: found from the changes of every sample's loss?")
def opposing_signals(setting: Setting) -> Outcome:
    n_seeds, rows = 5 if setting.quick else 50, []
    for name, (token, opposite) in setting.progress(list(WORLDS.items()), "opposing signals"):
        columns: dict[str, list[float]] = {}
        for s in range(n_seeds):
            given = world(token, opposite, setting.seed + s)
            found = opposing(given, setting.seed + s)
            values = {
                "auroc": min(recovered(given, found)), "cosine": found.cosine, "rarer": found.rarer,
                "stays": found.stays.mean(), "stays_null": found.stays_null.mean(), "spikes": len(found.spikes),
            }  # fmt: skip
            for key, value in values.items():
                columns.setdefault(key, []).append(float(value))
        row: dict[str, Any] = {"world": name, "seeds": n_seeds}
        for key, column in columns.items():
            row |= {key: float(np.mean(column)), f"{key}_ci": mean_interval(np.array(column), setting.seed)}
        rows.append(row)
    notes = (
        "auroc: of the worse of the two groups; cosine of the mean gradients of the two sides (confirmed below −0.5); "
        "rarer: share of random sets whose mean gradient is shorter (confirmed from 0.95); stays: overlap of the "
        "samples that change most, from spike to spike, and at random times. Intervals over seeds.",
    )
    return Outcome({"worlds": rows}, notes)
