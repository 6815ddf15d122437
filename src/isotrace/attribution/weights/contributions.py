"""The pre-activation of a feature, token by token, as a sum over what is written: embeddings, features, heads, errors.

    h_j = Σ_i z_i V_ij c + Σ heads + embeddings + errors + constants        at every token, with norms frozen

One step back: what a head gives is a term of its own, whatever it reads. Constants are what biases alone give.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from isotrace.attribution.weights.record import Recorded, Recordings
from isotrace.attribution.weights.routes import SAME_TOKEN, Reads, groups, virtual_weights
from isotrace.attribution.weights.segments import Place
from isotrace.base.errors import InputError
from isotrace.dictionaries.dictionary import SparseActivations
from isotrace.subjects.dispatch import Site, hookpoints_edited, overlaid
from isotrace.subjects.subject import Batch


@dataclass(frozen=True, eq=False)
class Contributions:
    """Of some features to `n` others at every token of a batch, float64 `[b, t, n]` each, by name: `token`,
    `position` (embeddings), `features` (by the same token), `head M.H`, `errors` (what MLPs write and the dictionary
    does not; all of it where the dictionary does not write for an MLP), `skip` (skip paths), `constants`.

    `total`: pre-activations."""

    terms: dict[str, Tensor]
    total: Tensor
    counted: Tensor


@torch.no_grad()
def contributions(recordings: Recordings, reads: Reads, rows: np.ndarray, batch: Batch) -> Contributions:
    """`constants` is what the other terms leave of the pre-activation."""
    segments, subject = recordings.segments, recordings.segments.subject
    config, dictionary = segments.dictionary.config, segments.dictionary
    seen: dict[object, Tensor] = {}
    layers = range(subject.n_layers)
    names = {*config.reads, *(f"layers.{m}.{kind}" for m in layers for kind in ("mlp_out", "head_out"))}
    sites = [(e.module, Site(after=(partial(_keep_output, seen, i),))) for i, e in enumerate(subject.embeddings)]
    with overlaid(sites), hookpoints_edited(subject, {name: partial(_keep, seen, name) for name in names}):
        recorded = recordings.record(rows, batch)
    slot, to = reads.slot, reads.to
    terms: dict[str, Tensor] = {}

    def add(name: str, writer: Place, written: Tensor, at: slice = slice(None)) -> None:
        if segments.joined(writer, to):
            found = _given(reads, recorded, writer, written[..., at] @ reads.first[writer][:, at].T)
            terms[name] = terms[name] + found if name in terms else found

    for i, embedding in enumerate(subject.embeddings):
        add(embedding.kind, Place("embedding", i), seen[i].expand(*batch.ids.shape, -1))
    for m in layers:
        for h in range(subject.n_heads(m)):
            add(f"head {m}.{h}", Place("heads", m), seen[f"layers.{m}.head_out"], segments.heads(m, h))
    left = {m: seen[f"layers.{m}.mlp_out"] for m in layers}
    if config.hookpoint_out == "layers.{}.mlp_out":
        every = [
            SparseActivations(*parts) for parts in zip(recorded.active.indices, recorded.active.values, strict=True)
        ]
        for group in groups(segments, to):
            weights, active = virtual_weights(reads, SAME_TOKEN, group), every[group.source]
            given = (active.values[..., None] * weights[active.indices.long()]).sum(-2)
            found = _given(reads, recorded, Place("features", group.targets[0]), given, True)
            terms["features"] = terms.get("features", torch.zeros_like(found)) + found
        flat = [SparseActivations(one.indices.flatten(0, 1), one.values.flatten(0, 1)) for one in every]
        x = torch.stack([seen[name].flatten(0, 1) for name in config.reads])
        for target, (m, made) in enumerate(zip(config.layers, dictionary.written(flat, x), strict=True)):
            left[m] = left[m] - made.view_as(left[m])
            if config.skip:
                standard, _, deviation = dictionary.standardised(seen[config.reads[target]])
                add("skip", Place("mlp", m), (standard @ dictionary.W_skip[target]) * deviation)
    for m in layers:
        add("errors", Place("mlp", m), left[m])
    total = dictionary.preactivations(slot, seen[config.reads[slot]])[..., reads.features].double()
    terms["constants"] = total - torch.stack([*terms.values()]).sum(0)
    return Contributions(terms, total, recorded.counted)


def _given(reads: Reads, recorded: Recorded, writer: Place, values: Tensor, by_features: bool = False) -> Tensor:
    """`values [b, t, n]` with σ = 1, as they arrive."""
    gain = reads.segments.gain(writer, reads.to, recorded.sigma)
    for more in (recorded.read_gain(reads.slot), recorded.write_gain(writer.index) if by_features else None):
        gain = gain if more is None else gain * more
    return values.double() * gain.double()[..., None]


def _keep(into: dict, name: object, x: Tensor) -> Tensor:
    into[name] = x
    return x


def _keep_output(into: dict, name: object, module, args, output: Tensor) -> None:
    into[name] = output


def shares(parts: Iterable[Contributions]) -> dict[str, np.ndarray]:
    """Of each term in the variance of the pre-activation over the tokens counted, `[n]` by name: Cov(term, h) / Var(h).
    They add up to one; below zero is a term that works against the others. NaN for a pre-activation that never varies.
    Raises InputError for fewer than two tokens."""
    totals, terms = [], {}
    for part in parts:
        totals.append(part.total[part.counted])
        for name, term in part.terms.items():
            terms.setdefault(name, []).append(term[part.counted])
    total = torch.cat(totals)
    if len(total) < 2:
        raise InputError("shares need at least two tokens: give more sequences.")
    centred = total - total.mean(0)
    variance = centred.square().mean(0)
    unit = torch.where(variance > 0, 1 / variance, torch.nan)
    return {name: ((torch.cat(term) * centred).mean(0) * unit).cpu().numpy() for name, term in terms.items()}
