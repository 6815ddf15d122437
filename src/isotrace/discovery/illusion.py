"""Is a direction that moves the output when patched one that the subject itself uses? (Makelov, Lange & Nanda 2023,
"Is this the subspace you are looking for?")

1. readers   the linear maps that read a hookpoint, side by side; their row space by SVD. What is orthogonal to it can
             change nothing: it is disconnected.
2. split     V into its read part R V and the rest. Patching V moves the read part by R V Vᵀ Δ, Δ = other − own
             input, even where only the rest differs between the two: the read part is then dormant, and the effect an
             illusion.
3. patch     along V, along the read part alone and along the rest alone, between pairs of inputs.
4. vary      how far the data move the read part by themselves when V is moved: slope of Δ on R V Vᵀ Δ. 1 = the patch
             does what the data do, 0 = dormant.

A slope also asks of a feature whether the subject writes along its write vector when it is active.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.discovery.method import Metric, Problem
from isotrace.discovery.methods.patching import patched_values
from isotrace.discovery.readers import row_space
from isotrace.discovery.tasks.basis import Basis, Keep
from isotrace.interventions import Subspaces
from isotrace.stats.bootstrap import group_weights, interval
from isotrace.stats.share import share
from isotrace.subjects.subject import Batch, Subject

Estimate = tuple[float, float, float]
"""(value, low, high): a 95 % interval."""
HALF = 0.5  # a slope or share is low if its whole interval lies below
NEGLIGIBLE = 1e-4  # a part of V shorter than this is float error
PARTS = ("whole", "read", "rest")


@dataclass(frozen=True)
class Illusion:
    """`rank` of `width` dimensions at the hookpoint are read; `read_share`: share of V in them, ‖R V‖² / r.

    `effect`: share of the metric's difference between the inputs of a pair that patching carries over; `variance`:
    mean square of what moves along a part between the inputs of a pair, per token; `covariance`: with the metric, of
    the mean along the part over the patched tokens (r = 1 only, NaN else). Each for the `whole` of V, its `read` part
    and the `rest`, effects as (value, low, high) with 95 % bootstrap intervals over pairs. `carried`: effect of the
    read part / effect of V; `slope`: see the module. `flagged`: V has an effect (the interval excludes 0), less than
    half of it is carried, and the slope is below a half, each with its whole interval; the read part is dormant.
    """

    site: str
    rank: int
    width: int
    read_share: float
    effect: dict[str, Estimate]
    carried: Estimate
    slope: Estimate
    variance: dict[str, float]
    covariance: dict[str, float]
    n_pairs: int

    @property
    def trivial(self) -> bool:
        """All that flows is read: nothing can be disconnected, and no illusion of this kind exists."""
        return self.rank == self.width

    @property
    def flagged(self) -> bool:
        _, low, high = self.effect["whole"]
        return (low > 0 or high < 0) and self.carried[2] < HALF and self.slope[2] < HALF


@torch.no_grad()
def illusion(
    subject: Subject, site: str, v: Tensor, pairs: Sequence[tuple[Batch, Batch]], metric: Metric, *,
    readout: Tensor | None = None, position: int = -1, n_bootstrap: int = 1_000, seed: int = 0,
) -> Illusion:  # fmt: skip
    """Check V `[d]` or `[d, r]` with orthonormal columns at `site` on pairs of batches of equal lengths; inputs of a
    pair should differ in what V is said to stand for. `readout` `[d_model, m]`: what the metric reads of the final
    hidden state, all of it without; `position`: the token that is patched, −1 = all.

    Raises InputError for pairs that differ in length, fewer than three of them, a V that is not orthonormal or has
    another width, SubjectError where what reads the hookpoint is not known (`readers.reading_maps`).
    """
    v = v[:, None] if v.ndim == 1 else v
    space = row_space(subject, site, readout).to(v)
    if any(not torch.equal(own.mask, other.mask) for own, other in pairs):
        raise InputError("the inputs of a pair differ in length: pair sequences with equally many tokens.")
    if len(v) != len(space):
        raise InputError(f"the direction has {len(v)} entries and {site} has {len(space)}: give one of that hookpoint.")
    read = space @ (space.T @ v)
    bases = {"whole": v, "read": _orthonormal(read), "rest": _orthonormal(v - read)}
    read = bases["read"] @ (bases["read"].T @ read)
    effects: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    difference, moved = [], []
    along: dict[str, list[Tensor]] = {part: [] for part in PARTS}
    values, n_tokens = [], []
    for own, other in pairs:
        own_x, other_x = (_at(subject, site, batch, position) for batch in (own, other))
        mask = own.mask if position < 0 else torch.ones_like(own.mask[:, :1])
        delta = (other_x - own_x) * mask[..., None]
        imposed = delta @ v @ read.T
        moved.append(torch.stack([(delta * imposed).sum((1, 2)), (imposed**2).sum((1, 2))], 1))
        n_tokens.append(mask.sum(1))
        both = [metric(batch, subject.hidden(batch.ids, batch.mask)) for batch in (own, other)]
        difference.append(both[0] - both[1])
        values += both
        for part, basis in bases.items():
            if not basis.shape[1]:
                effects[part].append(torch.zeros_like(both[0]))
                along[part].append(torch.zeros(len(both[0]), 3))
                continue
            problem = Problem.interchange(subject, Subspaces({site: basis}), own, other, metric)
            patched = patched_values(problem, torch.tensor([[0, position, 0]]))[0]
            effects[part].append(both[0] - patched)
            means = [((x @ basis[:, 0]) * mask).sum(1) / mask.sum(1) for x in (own_x, other_x)]
            along[part].append(torch.stack([((delta @ basis) ** 2).sum((1, 2)), *means], 1))
    gap = torch.cat(difference).double().cpu().numpy()
    if len(gap) < 3:
        raise InputError(f"{len(gap)} pairs of inputs bear no interval: give three or more.")
    weights = group_weights([str(i) for i in range(len(gap))], n_bootstrap, (seed, 3))
    sums = {part: weights @ (torch.cat(effects[part]).double().cpu().numpy() * np.sign(gap)) for part in PARTS}
    total, slopes = weights @ np.abs(gap), weights @ torch.cat(moved).double().cpu().numpy()
    tokens = float(torch.cat(n_tokens).sum())
    found = {part: torch.cat(along[part]).double().cpu().numpy() for part in PARTS}
    by_input = torch.stack([torch.cat(values[0::2]), torch.cat(values[1::2])]).double().cpu().numpy().ravel()
    one = v.shape[1] == 1
    return Illusion(
        site, space.shape[1], len(v), float((read**2).sum() / v.shape[1]),
        {part: _estimate(sums[part], total) for part in PARTS},
        _estimate(sums["read"], sums["whole"]),
        _estimate(slopes[:, 0], slopes[:, 1]),
        {part: float(found[part][:, 0].sum() / tokens) for part in PARTS},
        {p: float(np.cov(found[p][:, 1:].T.ravel(), by_input)[0, 1]) if one else float("nan") for p in PARTS},
        len(gap),
    )  # fmt: skip


def _at(subject: Subject, site: str, batch: Batch, position: int) -> Tensor:
    x = subject.run(batch, capture=[site], logits=False).captured[site]
    return x if position < 0 else x[:, position, None]


def _orthonormal(x: Tensor) -> Tensor:
    """A basis `[d, rank]` of the columns of x."""
    left, singular, _ = torch.linalg.svd(x, full_matrices=False)
    return left[:, singular > NEGLIGIBLE]


def _estimate(above: np.ndarray, below: np.ndarray) -> Estimate:
    """(ratio, low, high): the first entry is that of the inputs as they are, the others bootstrap draws.
    A feature that is active on few inputs has no ratio in draws without them: half of the draws are enough."""
    ratio = share(above, below, 0.0)
    return (float(ratio[0]), *(interval(ratio[1:], 0.5) if np.isfinite(ratio[0]) else (np.nan, np.nan)))


@torch.no_grad()
def feature_illusions(
    basis: Basis, keep: Keep, batches: Iterable[Batch], *, groups: Sequence[str] | None = None,
    n_bootstrap: int = 500, seed: int = 0, progress: Callable[[Iterable], Iterable] = iter,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row per part in `keep`, layers one after the other: does what the subject itself writes move along the
    part's write vector w when its activation a changes?

    `slope`: of ⟨m, ŵ⟩ on a over the real tokens of `batches`, relative to ‖w‖, m what the subject has at the
    hookpoints written to (all layers a part writes to count as one long vector, each with its own intercept). It
    counts for a part what others write that are active with it, so it may be far from 1 for a faithful one.
    `own`: the same with m less what all else in the basis writes, which is 1 + the slope of the error along ŵ: 1 for
    every part of a basis that reconstructs m, about 0 or below for a dormant write, which the error takes back. Parts
    that are always active together share their errors. `dormant`: the whole interval of `own` is below a half.

    `ci`, `own_ci`: 95 % bootstrap intervals over `groups`, one name per sequence in order (without: sequences).
    `n_active`: tokens. Slopes are NaN for a part that is never active. Where a dictionary standardises tokens, a counts
    in units of the token's deviation.
    """
    writers, subject = basis.writers, basis.subject
    reads, writes = writers.reads(subject), writers.writes(subject)
    layers = [layer for layer, kept in enumerate(keep) if len(kept)]
    rows = {
        layer: writers.rows(subject, layer, keep[layer]).unflatten(-1, (len(writers.targets(layer)), -1))
        for layer in layers
    }
    sums: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for batch in progress(batches):
        captured = subject.run(batch, capture=[*{*reads, *writes}], logits=False).captured
        active = [writers.encode(layer, captured[site]) for layer, site in enumerate(reads)]
        written: dict[int, Tensor] = {}
        for layer, a in enumerate(active):
            writers.add(layer, a @ writers.rows(subject, layer, slice(None)), written)
        for layer in layers:
            a, mask, parts = active[layer][..., keep[layer]], batch.mask[..., None], []
            for slot, target in enumerate(writers.targets(layer)):
                w, m, x = rows[layer][:, slot], captured[writes[target]], captured[reads[target]]
                one, none = (
                    writers.finish(subject, target, torch.full_like(m, value), x)[..., :1] for value in (1.0, 0.0)
                )
                b, y = a * (one - none), m @ w.T
                error = m - writers.finish(subject, target, written[target], x)
                r = error @ w.T + b * (w**2).sum(-1)
                b, y, r = ((t * mask).double() for t in (b, y, r))
                n = mask.expand_as(b).double()
                parts.append(torch.stack([t.sum(1) for t in (n, b, y, r, b * b, b * y, b * r)], -1))
            count = ((a > 0) & mask).sum(1).double()
            sums[layer].append(torch.cat([torch.stack(parts, 2).flatten(2), count[..., None]], -1))
    table = []
    for layer in layers:
        found = torch.cat(sums[layer]).cpu().numpy()  # [sequences, parts, targets · 7 + 1]
        names = [str(i) for i in range(len(found))] if groups is None else list(groups)
        weights = group_weights(names, n_bootstrap, (seed, 3))
        norms = (rows[layer] ** 2).sum(-1).double().cpu().numpy()
        for place, feature in enumerate(keep[layer].tolist()):
            by_target = found[:, place, :-1].reshape(len(found), -1, 7)
            (slope, *ci), (own, *own_ci) = _slopes(by_target, norms[place], weights)
            table.append({
                "layer": layer, "feature": feature, "n_active": int(found[:, place, -1].sum()),
                "slope": slope, "ci": ci, "own": own, "own_ci": own_ci, "dormant": own_ci[1] < HALF,
            })  # fmt: skip
    return table


def _slopes(sums: np.ndarray, norms: np.ndarray, weights: np.ndarray) -> tuple[Estimate, Estimate]:
    """(slope, own) from n, Σb, Σy, Σr, Σb², Σby, Σbr `[sequences, targets, 7]`: b the activation, y and r along w, r
    less what all else in the basis writes; norms ‖w‖² `[targets]`."""
    n, b, y, r, bb, by, br = np.moveaxis(np.tensordot(weights, sums, 1), -1, 0)  # each [1 + draws, targets]
    variance = bb - b * b / n
    variance[variance <= 1e-10 * bb] = 0  # what rounding leaves of a constant
    below = (variance * norms).sum(1)
    return _estimate((by - b * y / n).sum(1), below), _estimate((br - b * r / n).sum(1), below)
