"""What a subject says of the tokens of a sequence: each with its site masked, or behind all that stand before it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from isotrace.subjects.subject import Batch, Subject


def masked_copies(subject: "Subject", batch: "Batch", sets: Sequence[Sequence[int]]) -> "Batch":
    """Of a batch of one, a copy for each of `sets`, whose positions are masked together. Raises as
    `Subject.prepare_prediction`."""
    rows = []
    for sites in sets:
        row = batch
        for site in sites:
            row = subject.prepare_prediction(row, site)[0]
        rows.append(row.ids)
    n = len(rows)
    return replace(
        batch, ids=torch.cat(rows), mask=batch.mask.expand(n, -1), sequences=batch.sequences * n,
        offsets=batch.offsets * n,
    )  # fmt: skip


def read_tokens(subject: "Subject", batch: "Batch", logits: Tensor) -> tuple[Tensor, Tensor]:
    """(log p of the token that stands at each position, whether the subject predicts it), float64 and bool `[batch,
    tokens]`, from `logits [batch, tokens, vocabulary]`. Predicted are real tokens, but for the first one where a
    subject predicts the next; log p is 0 elsewhere. Special tokens count as others do."""
    logits = logits.double().log_softmax(-1)
    predicted = batch.mask.clone()
    if subject.predicts_next:
        logits = logits.roll(1, 1)
        predicted[:, 0] = False
    own = logits.gather(2, batch.ids[..., None])[..., 0]
    return torch.where(predicted, own, 0.0), predicted
