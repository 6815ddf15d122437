"""How much of a task's gradient lies in the span of what is active already."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from isotrace.activations.harvest import record
from isotrace.base.errors import InputError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.probing.states import pooled_states
from isotrace.stats.share import share
from isotrace.subjects.dispatch import hookpoints_edited
from isotrace.subjects.probe import pool
from isotrace.subjects.subject import Batch
from isotrace.transfer.predictors.evidence import Basis, Evidence, examples_of
from isotrace.transfer.predictors.features.bases import of_each_basis
from isotrace.transfer.predictors.gradients.gradient import fresh_loss

Scalar = Callable[[Tensor], Tensor]
"""Pooled states `[1, d]` → a scalar."""
INPUTS, TOKENS = 64, 4
"""Sequences at most, and tokens of each."""


@of_each_basis("inside", passes=1, sampled=(4, INPUTS), source="ours", needs=("texts",))
def inside(evidence: Evidence, basis: str) -> float:
    """‖P g‖²/‖g‖², g the gradient at what the basis writes to, P on the rows active at its token; less the same of as
    many random rows. Through ten fresh heads; four tokens of 64 sequences."""
    if (own := evidence.bases.get(basis)) is None:
        raise InputError(f"it needs the dictionary of the basis {basis}, and there is none (with_features)")
    if own.subject is not evidence.subject:
        states = pooled_states(own.subject, examples_of(own.subject, evidence.texts), [own.subject.n_layers], "mean")
        evidence = replace(evidence, subject=own.subject, embeddings=states.astype(np.float64))
    rng = np.random.default_rng((evidence.seed, 15))
    value, sums = fresh_loss(evidence), np.zeros(3)
    for row in rng.permutation(len(evidence.y))[:INPUTS]:
        batch = own.subject.tokenize([evidence.texts[row]])
        real = np.flatnonzero((batch.mask & ~own.subject.special(batch.ids))[0].cpu().numpy())
        tokens = rng.permutation(real)[:TOKENS]
        sums += _of_sequence(own, batch, lambda x, row=row: value(x, np.asarray([row])), tokens, rng)
    return share(sums[1], sums[0], 0.0) - share(sums[2], sums[0], 0.0)


def _of_sequence(own: Basis, batch: Batch, value: Scalar, tokens: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(‖g‖², ‖P g‖², ‖P' g‖²) summed over tokens and layers, P' of random rows."""
    dictionary, config, found = own.dictionary, own.dictionary.config, np.zeros(3)
    active: list[list[np.ndarray]] = []

    def take(slot: int, x: Tensor) -> None:
        on = dictionary.encode(slot, x[0, tokens])
        active.append([i[v > 0].cpu().numpy() for i, v in zip(on.indices, on.values, strict=True)])

    record(own.subject, batch, config.reads, take)
    for target, gradient in enumerate(_gradients(own, batch, value)):
        sources = [s for s in range(config.n_layers) if target in config.targets(s)]
        for place, g in enumerate(gradient[tokens].double()):
            chosen = [active[s][place] for s in sources]
            drawn = [rng.permutation(config.n_features)[: len(one)] for one in chosen]
            inside_of = [_projected(dictionary, sources, target, rows, g) for rows in (chosen, drawn)]
            found += float(g @ g), *inside_of
    return found


def _gradients(own: Basis, batch: Batch, value: Scalar) -> list[Tensor]:
    """`[tokens, d]` at everything the basis writes to."""
    leaves: dict[str, Tensor] = {}

    def edit(name: str, x: Tensor) -> Tensor:
        leaves[name] = torch.zeros_like(x).requires_grad_(True)
        return x + leaves[name]

    names = own.dictionary.config.writes
    with torch.enable_grad(), hookpoints_edited(own.subject, {name: partial(edit, name) for name in names}):
        total = value(pool(own.subject, batch, own.subject.hidden(batch.ids, batch.mask)))
    return [g[0] for g in torch.autograd.grad(total, [leaves[n] for n in names], materialize_grads=True)]


def _projected(dictionary: Dictionary, sources: list[int], target: int, rows: list[np.ndarray], g: Tensor) -> float:
    """‖P g‖², P on the span of the given decoder rows of every source."""
    written = torch.cat(
        [dictionary.decoder(s, target)[torch.from_numpy(one)] for s, one in zip(sources, rows, strict=True)]
    )
    if not len(written):
        return 0.0
    _, s, v = torch.linalg.svd(written.double(), full_matrices=False)
    basis = v[s > 1e-9 * s.max()] if float(s.max()) > 0 else v[:0]
    return float((basis @ g).square().sum())
