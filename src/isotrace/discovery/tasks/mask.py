"""A mask over the parts of a basis, learned on the discovery sequences, free-running: straight-through estimator
(Bengio et al. 2013, arXiv:1308.3432), one ranking for all sizes as in `attribution.circuits.learned`.

    loss = Σ (output of the circuit − output of the subject)² / Σ (output − mean)² + λ · parts kept

In a step the k parts of largest score are kept, all others stand at their mean and nothing else speaks, as in the
circuits that are judged; the gradient passes the threshold as if it were a sigmoid. k is drawn anew in every step, half
of the draws below √(n / 10), and λ is what the 2k-th best part is worth at that point, so that parts worth less sink
alike: one λ would serve one size, and one that grows lets thousands of parts go at once. The start is the ranking by
attribution patching.
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
STEPS, SEQUENCES, RATE = 220, 16, 0.05
"""Adam steps, sequences in each, and their rate at the beginning, which falls to 0. Ranked are the mean scores of the
second half."""


def learned(
    basis: Basis, readout: Readout, data: TaskData, statistics: Statistics, start: Tensor,
    progress: Callable[[Iterable], Iterable] = iter, *, steps: int | None = None, seed: int = 0,
) -> Tensor:  # fmt: skip
    """Scores `[parts]` float64, layers one after the other, from the order of `start [parts]`."""
    steps, examples, rng = STEPS if steps is None else steps, data.parts["discover"], np.random.default_rng(seed)
    own = clean(readout, examples)
    every = torch.cat(own)
    variance = (every - every.mean(0)).square().sum(1).mean()
    means, alone = basis.means(statistics), basis.components.alone(statistics.mean)
    order = start.argsort(stable=True).argsort().to(every)
    scores = (2 * order / max(1, basis.n - 1) - 1).requires_grad_(True)
    adam, mean = torch.optim.Adam([scores], RATE), torch.zeros_like(scores)
    for step in progress(range(steps)):
        rows = np.sort(rng.choice(len(examples), min(SEQUENCES, len(examples)), replace=False))
        k = int(np.exp(rng.uniform(0, np.log(max(2, basis.n // 10)))))
        chosen = [examples[i] for i in rows]
        ((_, batch),) = batches(chosen, 10**9, readout.subject)
        with torch.enable_grad():
            parts = straight_through(scores, k).split([*basis.sizes])

            def edit(layer: int, values: Tensor, parts=parts) -> Tensor:
                return means[layer] + parts[layer][:, None] * (values - means[layer])

            with alone.edited(basis.subject, edit):
                outputs = readout.outputs(chosen, batch, basis.subject.hidden(batch.ids, batch.mask))
            loss = (outputs - torch.cat([own[i] for i in rows])).square().sum(1).mean() / variance
        (slope,) = torch.autograd.grad(loss, [scores])
        # Adam moves what matters little as far as what matters much: without the pressure they would change places
        scores.grad = slope + (-slope).topk(min(2 * k, basis.n)).values[-1].clamp(min=0)
        for group in adam.param_groups:
            group["lr"] = RATE * (1 - step / steps)
        adam.step()
        if 2 * step >= steps:
            mean += scores.detach()
    return mean.double().cpu()


def straight_through(scores: Tensor, k: int) -> Tensor:
    """1 for the `k` largest scores and 0 for the others, with the slope of a sigmoid at the threshold."""
    best = scores.detach().topk(min(k + 1, len(scores)))
    hard = torch.zeros_like(scores).index_fill(0, best.indices[:k], 1.0)
    soft = torch.sigmoid((scores - best.values[-2:].mean()) / (scores.detach().std() + 1e-12))
    return hard + soft - soft.detach()


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
