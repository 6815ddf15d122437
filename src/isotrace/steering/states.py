"""What flows at components of a subject while it reads labelled sequences: pooled rows, weighted sums, usual lengths.

Passes are batched, nothing but what is asked for is kept, and sums are taken in float64.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, silent
from isotrace.datasets.tasks import Example, batches
from isotrace.interventions.components import Components
from isotrace.interventions.plan import Plan
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.probe import pooling_weights
from isotrace.subjects.subject import Batch, Subject

BATCH_TOKENS = 4_096
How = Literal["mean", "last"]
"""Over the real tokens that are not special, or the last of them."""
States = dict[int, Tensor]
"""Layer of the components → rows, components and their width side by side."""


PLAIN = Plan()


class _Done(Exception):  # noqa: N818
    """Every layer has been seen."""


def checked_layers(subject: Subject, components: Components, layers: Sequence[int]) -> tuple[int, ...]:
    """`layers` in order, none: all. Raises InputError for one that the components do not have."""
    n = len(components.sizes(subject))
    if wrong := [layer for layer in layers if not 0 <= layer < n]:
        raise InputError(f"{components.name} of {subject.source} has no layer {wrong[0]}: give 0 to {n - 1}.")
    return tuple(sorted(set(layers))) or tuple(range(n))


@torch.no_grad()
def flowing(
    subject: Subject, components: Components, layers: Sequence[int], batch: Batch, plan: Plan = PLAIN
) -> States:
    """Layer → `[batch, tokens, components · width]` of one pass under `plan`, which stops at the last of `layers`."""
    seen: States = {}

    def keep(layer: int, values: Tensor) -> Tensor:
        if layer in layers:
            seen[layer] = values.flatten(-2)
            if len(seen) == len(layers):
                raise _Done
        return values

    under = plan.on(subject, batch).applied(subject)
    with suppress(_Done), fast_kernels(subject), under, components.edited(subject, keep, layers):
        final = subject.hidden(batch.ids, batch.mask)
        if subject.has_head:  # what is asked for may flow there
            subject.head(final)
    return seen


def token_weights(subject: Subject, batch: Batch, how: How) -> Tensor:
    """`[batch, tokens]`, rows of sum 1. Raises InputError for a row of special tokens only."""
    weights = pooling_weights(subject, batch)
    if how == "mean":
        return weights
    places = torch.arange(weights.shape[1], device=weights.device)
    last = ((weights > 0) * places).amax(1, keepdim=True)
    return (places == last).to(weights)


def pooled_by(x: Tensor, weights: Tensor) -> Tensor:
    """float64 `[batch, d]` of `x [batch, tokens, d]`, or of the one row that a pooled hookpoint has."""
    x = x.double()
    return x[:, 0] if x.shape[1] == 1 else (x * weights[..., None].double()).sum(1)


def _streamed(
    subject: Subject, examples: Sequence[Example], components: Components, layers: Sequence[int], label: str,
    progress: Progress, plan: Plan = PLAIN,
) -> Iterator[tuple[np.ndarray, Batch, States]]:  # fmt: skip
    """(rows of `examples`, batch, states of its tokens), the shortest first."""
    order = np.argsort([len(e.ids) for e in examples], kind="stable")
    for rows, batch in progress(batches([examples[i] for i in order], BATCH_TOKENS, subject), label):
        yield order[rows], batch, flowing(subject, components, layers, batch, plan)


def pooled(
    subject: Subject, examples: Sequence[Example], components: Components, layers: Sequence[int], how: How = "mean",
    progress: Progress = silent, plan: Plan = PLAIN,
) -> States:  # fmt: skip
    """float64 `[n, d]` per layer, in the order of `examples`; `plan`: what is done to the subject meanwhile."""
    found: States = {}
    given = subject, examples, components, layers, "reading activations", progress, plan
    for rows, batch, states in _streamed(*given):
        weights = token_weights(subject, batch, how)
        for layer, x in states.items():
            part = pooled_by(x, weights).cpu()
            found.setdefault(layer, part.new_empty(len(examples), part.shape[1]))[torch.from_numpy(rows)] = part
    return found


def by_position(
    subject: Subject, examples: Sequence[Example], components: Components, layers: Sequence[int],
    progress: Progress = silent,
) -> Iterator[tuple[int, States]]:  # fmt: skip
    """(row of `examples`, float64 `[tokens, d]` per layer), special tokens included, the shortest first."""
    for rows, batch, states in _streamed(subject, examples, components, layers, "reading activations", progress):
        for place, (row, mask) in enumerate(zip(rows.tolist(), batch.mask, strict=True)):
            yield row, {layer: x[place][mask].double().cpu() for layer, x in states.items()}


def weighted(
    subject: Subject, examples: Sequence[Example], components: Components, layers: Sequence[int], weights: np.ndarray,
    how: How = "mean", progress: Progress = silent,
) -> tuple[States, dict[int, float]]:  # fmt: skip
    """(Σ weights · pooled state, float64 `[k, d]` per layer, for `weights [n, k]`; median length of the state of a
    real token per layer, the unit of a dose)."""
    sums: States = {}
    lengths: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for rows, batch, states in _streamed(subject, examples, components, layers, "reading activations", progress):
        tokens = token_weights(subject, batch, how)
        factors = torch.from_numpy(weights[rows]).double().to(batch.ids.device)
        for layer, x in states.items():
            part = (factors.T @ pooled_by(x, tokens)).cpu()
            sums[layer] = sums[layer] + part if layer in sums else part
            lengths[layer].append(_lengths(x, tokens))
    return sums, _medians(lengths)


def weighted_by_position(
    subject: Subject, examples: Sequence[Example], components: Components, layers: Sequence[int], weights: np.ndarray,
    progress: Progress = silent,
) -> tuple[States, dict[int, float]]:  # fmt: skip
    """`weighted` with positions kept: (Σ weights · state, float64 `[tokens, d]` per layer, 0 at tokens that are special
    in a sequence, for `weights [n]`; median lengths). Raises InputError for sequences of unequal length and for a
    pooled row in the place of tokens."""
    sizes = sorted({len(e.ids) for e in examples})
    if len(sizes) > 1:
        raise InputError(
            f"sequences of {sizes[0]} to {sizes[-1]} tokens have no positions in common: give variants of one "
            "sequence, or pool over tokens."
        )
    sums: States = {}
    lengths: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    for rows, batch, states in _streamed(subject, examples, components, layers, "reading activations", progress):
        tokens = token_weights(subject, batch, "mean")
        factors = torch.from_numpy(weights[rows]).double().to(batch.ids.device)[:, None] * (tokens > 0)
        for layer, x in states.items():
            if x.shape[1] != factors.shape[1]:
                raise InputError(f"{components.name}s have one row a sequence and no positions: pool over tokens.")
            part = (factors[..., None] * x.double()).sum(0).cpu()
            sums[layer] = sums[layer] + part if layer in sums else part
            lengths[layer].append(_lengths(x, tokens))
    return sums, _medians(lengths)


def usual_lengths(
    subject: Subject, examples: Sequence[Example], components: Components, layers: Sequence[int]
) -> dict[int, float]:
    """Median length of the state of a real token per layer."""
    return weighted(subject, examples, components, layers, np.zeros((len(examples), 1)))[1]


def _lengths(x: Tensor, tokens: Tensor) -> Tensor:
    """Norms of the states of real tokens, those apart that are exactly 0, as those of silent units."""
    norms = x.float().norm(dim=-1).cpu()
    norms = norms.flatten() if norms.shape[1] == 1 else norms[(tokens > 0).cpu()]
    return norms[norms > 0]


def _medians(lengths: dict[int, list[Tensor]]) -> dict[int, float]:
    ends = {layer: torch.cat(parts) for layer, parts in lengths.items()}
    return {layer: float(norms.median()) if len(norms) else 0.0 for layer, norms in ends.items()}
