"""What a set of tokens has of the subject's predictions: the metric by which units are lifted."""

import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.subjects.probe import pooling_weights
from isotrace.subjects.subject import Batch, Subject


def token_set(subject: Subject, tokens: str) -> list[int]:
    """Ids of `A,B,…`. Raises InputError for one that the vocabulary lacks, and for none."""
    names = [name.strip() for name in tokens.split(",") if name.strip()]
    if not names:
        raise InputError("no token is named: give some, separated by commas.")
    return [subject.token_id(name) for name in names]


def token_mass(subject: Subject, batch: Batch, final: Tensor, tokens: str) -> Tensor:
    """`[batch]`: mean over real tokens of the log-odds that what is predicted there is one of `tokens`, differentiable
    in the final hidden state. Raises SubjectError for a subject without a head."""
    logs = subject.head(final).double().log_softmax(-1)
    ids = token_set(subject, tokens)
    inside = logs[..., ids].logsumexp(-1)
    others = torch.ones(logs.shape[-1], dtype=torch.bool, device=logs.device)
    others[ids] = False
    outside = logs[..., others].logsumexp(-1)
    return ((inside - outside) * pooling_weights(subject, batch)).sum(-1)
