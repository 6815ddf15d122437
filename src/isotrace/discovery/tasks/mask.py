"""A mask over the parts of a basis, learned on the discovery sequences, free-running: straight-through estimator
(Bengio et al. 2013, arXiv:1308.3432) under a sparsity term that grows.

    loss = Σ (output of the circuit − output of the subject)² / Σ (output − mean)² + λ · parts kept

A part is kept where its score is above zero, all others stand at their mean and nothing else speaks, as in the circuits
that are judged. λ grows from a share of the outputs' variance that next to no part is below to one that next to none is
above, so that parts leave in the order of what they are worth while the others make up for them; a part's rank is how
long it stayed. One run ranks for all sizes; labels are not used, the readout is.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from isotrace.datasets.tasks import Example, TaskData, batches
from isotrace.discovery.tasks.basis import Basis, Statistics
from isotrace.discovery.tasks.readout import BATCH_TOKENS, Readout
from isotrace.subjects.fast import fast_kernels

NAME = "learned_mask"
STEPS, SEQUENCES, RATE, START = 220, 16, 0.05, 0.5
"""Adam steps, sequences in each, their rate, and the score that every part starts from."""
FIRST, LAST = 1e-5, 3e-2
"""λ of the first step and of the last, as a share of the variance of the outputs."""


def learned(
    basis: Basis, readout: Readout, data: TaskData, statistics: Statistics,
    progress: Callable[[Iterable], Iterable] = iter, *, steps: int = STEPS, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Scores `[parts]` float64, layers one after the other: in how many of the steps a part was kept, and below that
    its score at the end."""
    examples, rng = data.parts["discover"], np.random.default_rng(seed)
    own = clean(readout, examples)
    every = torch.cat(own)
    variance = (every - every.mean(0)).square().sum(1).mean()
    means, sizes = basis.means(statistics), [*basis.sizes]
    alone = basis.components.alone(statistics.mean)
    scores = torch.full((basis.n,), START, device=every.device, requires_grad=True)
    adam, stayed = torch.optim.Adam([scores], RATE), torch.zeros_like(scores)
    for step in progress(range(steps)):
        rows = np.sort(rng.choice(len(examples), min(SEQUENCES, len(examples)), replace=False))
        chosen = [examples[i] for i in rows]
        ((_, batch),) = batches(chosen, 10**9, readout.subject)
        with torch.enable_grad():
            mask = straight_through(scores)
            parts = mask.split(sizes)

            def edit(layer: int, values: Tensor, parts=parts) -> Tensor:
                return means[layer] + parts[layer][:, None] * (values - means[layer])

            with alone.edited(basis.subject, edit):
                outputs = readout.outputs(chosen, batch, basis.subject.hidden(batch.ids, batch.mask))
            away = (outputs - torch.cat([own[i] for i in rows])).square().sum(1).mean() / variance
            loss = away + FIRST * (LAST / FIRST) ** (step / max(1, steps - 1)) * mask.sum()
        (scores.grad,) = torch.autograd.grad(loss, [scores])
        adam.step()
        stayed += scores.detach() > 0
    return (stayed + torch.sigmoid(scores.detach())).double().cpu()


def straight_through(scores: Tensor) -> Tensor:
    """1 where a score is above zero and 0 elsewhere, with the slope of a sigmoid whose own is one at zero."""
    soft = torch.sigmoid(4 * scores)
    return (scores > 0).to(soft) + soft - soft.detach()


@torch.no_grad()
def clean(readout: Readout, examples: tuple[Example, ...]) -> list[Tensor]:
    """The subject's outputs `[rows, outputs]` of every example: one row, or one per labelled token."""
    found: list[Tensor] = []
    for rows, batch in batches(examples, BATCH_TOKENS, readout.subject):
        chosen = [examples[i] for i in rows]
        with fast_kernels(readout.subject):
            outputs = readout.outputs(chosen, batch, readout.subject.hidden(batch.ids, batch.mask))
        found += outputs.split([np.size(e.y) for e in chosen])
    return found
