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

The same slope asks of a feature whether the subject writes along its write vector when it is active.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from isotrace.circuits.mediators import Subspaces
from isotrace.circuits.methods.linear_rules import LINEAR, first_maps
from isotrace.circuits.methods.method import Metric, Problem
from isotrace.circuits.methods.patching import patched_values
from isotrace.circuits.tasks.basis import Keep, Writers
from isotrace.circuits.tasks.metrics import group_weights
from isotrace.errors import InputError, SubjectError
from isotrace.subjects.subject import Batch, Subject, hookpoints_edited

HALF = 0.5  # a slope or share is low if its whole interval lies below
TOLERANCE = 1e-5  # a direction is read if its singular value is above this share of the largest; weights are float32
NEGLIGIBLE = 1e-4  # a part of V shorter than this is float error
PARTS = ("whole", "read", "rest")


def reading_maps(subject: Subject, site: str, readout: Tensor | None = None) -> Tensor:
    """`[d, m]`: the linear maps that read the hookpoint, side by side.

    neuron and head_out are read by one map, mlp_in by the first of its MLP. The stream is read by the queries, keys,
    values and MLPs behind the hookpoint, through the norms on the way with their denominators left out, and, as the
    final hidden state, by `readout` (all of it without). Raises SubjectError for a hookpoint that the subject does not
    have, and for the streams of an encoder–decoder.
    """
    module, _ = subject.hookpoint(site)
    _, layer, kind = site.split(".")
    if kind in ("neuron", "head_out"):
        return _matrix(module)
    if kind == "mlp_in":
        return torch.cat([_matrix(m) for m in first_maps(subject, int(layer))], 1)
    if len(subject.stack_sizes) > 1:
        raise SubjectError(f"what reads the streams of an encoder–decoder such as {subject.source} is not listed here.")
    return _readers_of_the_stream(subject, site, readout)


def _matrix(module: nn.Module) -> Tensor:
    """`[d_in, d_out]`: transformers' Conv1D holds the transpose of what nn.Linear does."""
    weight = cast(Tensor, module.weight)
    return weight.T if isinstance(module, nn.Linear) else weight


@torch.no_grad()
def _readers_of_the_stream(subject: Subject, site: str, readout: Tensor | None) -> Tensor:
    """One pass tells which norm and which map is given which tensor."""
    blocks = [subject.hookpoint(f"layers.{layer}.resid_post")[0] for layer in range(subject.n_layers)]
    norms = set(subject.norms.values())
    linear = {m for block in blocks for m in block.modules() if isinstance(m, LINEAR)}
    events: list[tuple[nn.Module | None, Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        events.append((module, args[0], output[0] if isinstance(output, tuple) else output))

    def mark(x: Tensor) -> Tensor:
        events.append((None, x, x))
        return x

    with ExitStack() as stack:
        for module in {*blocks, *norms, *linear}:
            stack.callback(module.register_forward_hook(note).remove)
        stack.enter_context(hookpoints_edited(subject, {site: mark}))
        ids = torch.full((1, 2), subject.pad_id, device=subject.device)
        subject.hidden(ids, torch.ones_like(ids, dtype=torch.bool))
    normed = {id(y) for module, _, y in events if module in norms}
    on_stream = id(next(y for module, _, y in events if module is blocks[0])) in normed  # post-norm blocks
    start = next(i for i, (module, _, _) in enumerate(events) if module is None)
    identity = torch.eye(subject.d_model)
    stream = latest = identity
    given, found = {id(events[start][2]): identity}, []
    for module, x, y in events[start + 1 :]:
        if module in norms:
            weight = cast(Tensor, cast(nn.Module, module).weight)
            centred = stream - stream.mean(1, keepdim=True) if subject.family.norm.centred else stream
            given[id(y)] = latest = centred * weight
            stream = latest if on_stream else stream
        elif module in linear and id(x) in given:
            found.append(given[id(x)] @ _matrix(cast(nn.Module, module)))
    # the last norm is that before the final hidden state
    return torch.cat([*found, latest if readout is None else latest @ readout], 1)


@torch.no_grad()
def row_space(subject: Subject, site: str, readout: Tensor | None = None) -> Tensor:
    """Orthonormal basis `[d, rank]` float64 of what is read at a hookpoint, see `reading_maps` and TOLERANCE."""
    maps = reading_maps(subject, site, readout).double()
    if maps.shape[1] > len(maps):  # the same left singular vectors, of a square matrix
        maps = torch.linalg.qr(maps.T, mode="r").R.T
    left, singular, _ = torch.linalg.svd(maps, full_matrices=False)
    return left[:, singular > TOLERANCE * singular[0]]


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
    effect: dict[str, tuple[float, float, float]]
    carried: tuple[float, float, float]
    slope: tuple[float, float, float]
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
    gap = torch.cat(difference).double().numpy()
    if len(gap) < 3:
        raise InputError(f"{len(gap)} pairs of inputs bear no interval: give three or more.")
    weights = group_weights([str(i) for i in range(len(gap))], n_bootstrap, seed)
    sums = {part: weights @ (torch.cat(effects[part]).double().numpy() * np.sign(gap)) for part in PARTS}
    total, slopes = weights @ np.abs(gap), weights @ torch.cat(moved).double().numpy()
    tokens = float(torch.cat(n_tokens).sum())
    found = {part: torch.cat(along[part]).double().numpy() for part in PARTS}
    by_input = torch.stack([torch.cat(values[0::2]), torch.cat(values[1::2])]).double().numpy().ravel()
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


def _estimate(above: np.ndarray, below: np.ndarray) -> tuple[float, float, float]:
    """(ratio, low, high): the first entry is that of the inputs as they are, the others bootstrap draws. Draws
    without a ratio are left out; NaN if they are half of all, or if there is none as they are."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = above / below
    draws = ratio[1:][np.isfinite(ratio[1:])]
    if not np.isfinite(ratio[0]) or 2 * len(draws) <= len(ratio) - 1:
        return (float(ratio[0]) if np.isfinite(ratio[0]) else float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(ratio[0]), float(low), float(high)


@torch.no_grad()
def feature_illusions(
    basis: Writers, keep: Keep, batches: Iterable[Batch], *, groups: Sequence[str] | None = None,
    n_bootstrap: int = 500, seed: int = 0, progress: Callable[[Iterable], Iterable] = iter,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row per part in `keep`, layers one after the other: does what the subject itself writes move along the
    part's write vector w when its activation a changes?

    `slope`: of ⟨m, ŵ⟩ on a over the real tokens of `batches`, relative to ‖w‖, m what the subject has at the
    hookpoints written to (all layers a part writes to count as one long vector, each with its own intercept). 1 = as
    the dictionary says, about 0 or below = dormant. `ci`: 95 % bootstrap interval over `groups`, one name per
    sequence in order (without: sequences). `dormant`: the whole interval is below a half. `n_active`: tokens.
    The slope is of one part alone: others that are active with it move m too, so it may exceed 1. It is NaN for a
    part that is never active. Where a dictionary standardises tokens, a counts in units of the token's deviation.
    """
    layers = [layer for layer, kept in enumerate(keep) if len(kept)]
    sites = [*dict.fromkeys(basis.reads + basis.writes)]
    sums: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for batch in progress(batches):
        captured = basis.subject.run(batch, capture=sites, logits=False).captured
        for layer in layers:
            a = basis.encode(layer, captured[basis.reads[layer]])[..., keep[layer]]
            rows = basis.rows(layer, keep[layer]).unflatten(-1, (len(basis.targets(layer)), -1))
            mask, parts = batch.mask[..., None], []
            for slot, target in enumerate(basis.targets(layer)):
                m, x = captured[basis.writes[target]], captured[basis.reads[target]]
                one, none = (basis.finish(target, torch.full_like(m, value), x)[..., :1] for value in (1.0, 0.0))
                b, y = ((t * mask).double() for t in (a * (one - none), m @ rows[:, slot].T))
                norm = (rows[:, slot] ** 2).sum(-1).expand(len(a), -1).double()
                n = batch.mask.sum(1, keepdim=True).expand_as(norm).double()
                parts.append(torch.stack([n, b.sum(1), y.sum(1), (b * b).sum(1), (b * y).sum(1), norm], -1))
            active = ((a > 0) & mask).sum(1).double()
            sums[layer].append(torch.cat([torch.stack(parts, 2).flatten(2), active[..., None]], -1))
    table = []
    for layer in layers:
        found = torch.cat(sums[layer]).numpy()  # [sequences, parts, targets · 6 + 1]
        names = [str(i) for i in range(len(found))] if groups is None else list(groups)
        weights = group_weights(names, n_bootstrap, seed)
        for place, feature in enumerate(keep[layer].tolist()):
            value, low, high = _slope(found[:, place, :-1].reshape(len(found), -1, 6), weights)
            table.append({
                "layer": layer, "feature": feature, "n_active": int(found[:, place, -1].sum()),
                "slope": value, "ci": [low, high], "dormant": high < HALF,
            })  # fmt: skip
    return table


def _slope(sums: np.ndarray, weights: np.ndarray) -> tuple[float, float, float]:
    """From n, Σb, Σy, Σb², Σby and ‖w‖² of every sequence and target, `[sequences, targets, 6]`."""
    n, b, y, bb, by = np.moveaxis(np.tensordot(weights, sums[..., :5], 1), -1, 0)  # each [1 + draws, targets]
    with np.errstate(invalid="ignore", divide="ignore"):
        covariance, variance = by - b * y / n, bb - b * b / n
    variance[variance <= 1e-12 * bb] = 0  # what rounding leaves of a constant
    return _estimate(covariance.sum(1), (variance * sums[0, :, 5]).sum(1))
