"""What a probe is fitted on: pooled hidden states of labelled sequences, and what a look at the tokens alone gives."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from isotrace.base.progress import Progress, silent
from isotrace.datasets.tasks import Example, batches
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.probe import Pool, pool
from isotrace.subjects.subject import Batch, Subject

BATCH_TOKENS = 4_096


@torch.no_grad()
def pooled_states(
    subject: Subject, examples: Sequence[Example], layers: Sequence[int], how: Pool, progress: Progress = silent,
    hidden: Callable[[Batch], Tensor] | None = None,
) -> np.ndarray:  # fmt: skip
    """float32 `[n, d_pooled]`, a row per example in their order; of the pool token a row per labelled token. `hidden`
    computes the hidden states of the layers otherwise than the subject does."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    ranked, found = [examples[i] for i in order], [np.zeros((0, 0), np.float32)] * len(examples)
    for rows, batch in progress(batches(ranked, BATCH_TOKENS, subject), f"reading {subject.source}"):
        if hidden is None:
            with fast_kernels(subject):
                read = subject.hidden(batch.ids, batch.mask, layers)
        else:
            read = hidden(batch)
        states = pool(subject, batch, read, how)
        for i, state in zip(rows.tolist(), states, strict=True):
            kept = state[[*ranked[i].places]] if how == "token" else state[None]
            found[order[i]] = kept.float().cpu().numpy()
    return np.concatenate(found)


def token_counts(subject: Subject, examples: Sequence[Example], how: Pool) -> np.ndarray:
    """float32 `[n, vocabulary]`: how often each token stands in a sequence; of the pool token which one it is, one row
    per labelled token."""
    size = 1 + max(int(e.ids.max()) for e in examples)
    if how == "token":
        return np.eye(size, dtype=np.float32)[np.concatenate([e.ids[[*e.places]] for e in examples])]
    return np.stack([np.bincount(e.ids, minlength=size) for e in examples]).astype(np.float32)
