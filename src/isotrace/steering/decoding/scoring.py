"""How likely a subject, edited or not, finds sequences that stand: by teacher forcing, or token by token masked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import SubjectError
from isotrace.interventions.plan import Plan
from isotrace.steering.decoding.run import BATCH_TOKENS
from isotrace.subjects.heads.likelihoods import masked_copies, read_tokens
from isotrace.subjects.subject import Batch, Subject


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """`total [n]` in nats, of `n_tokens [n]` tokens; `forwards`: sequences × passes."""

    total: np.ndarray
    n_tokens: np.ndarray
    forwards: int

    @property
    def per_token(self) -> np.ndarray:
        return self.total / self.n_tokens


def log_likelihoods(
    subject: Subject, sequences: Sequence[str], sources: Sequence[str] | None = None, edit: Plan = Plan()  # noqa: B008
) -> Likelihoods:  # fmt: skip
    """log p of `sequences`, the token that ends them included, with `sources` where an encoder reads others.

    Of a causal subject or an encoder–decoder by teacher forcing; of a masked one the pseudo-log-likelihood, each token
    that is no special one masked alone. Raises SubjectError without a head, InputError for a sequence that cannot be
    read."""
    if not subject.has_head:
        raise SubjectError(f"{subject.source} has no language-model head, so it finds nothing likely: take one.")
    found: list[tuple[float, int, int]] = []
    for i, sequence in enumerate(sequences):
        batch = subject.tokenize([sequence], None if sources is None else [sources[i]])
        if subject.objective == "masked":
            places = (~subject.special(batch.ids[0])).nonzero()[:, 0]
            size = max(1, BATCH_TOKENS // batch.ids.shape[1])
            value = sum(_masked(subject, batch, part, edit) for part in places.split(size))
            found.append((value, len(places), len(places)))
        else:
            logits = subject.run(batch, plan=edit).logits
            assert logits is not None
            own, predicted = read_tokens(subject, batch, logits)
            found.append((float(own.sum()), int(predicted.sum()), 1))
    total, n_tokens, forwards = (np.asarray(column) for column in zip(*found, strict=True))
    return Likelihoods(total.astype(np.float64), n_tokens, int(forwards.sum()))


def _masked(subject: Subject, batch: Batch, places: Tensor, edit: Plan) -> float:
    """Σ log p of the tokens at `places`, each masked alone."""
    logits = subject.run(masked_copies(subject, batch, [[p] for p in places.tolist()]), plan=edit).logits
    assert logits is not None
    read = logits[torch.arange(len(places), device=logits.device), places].double().log_softmax(-1)
    return float(read.gather(1, batch.ids[0, places][:, None]).sum())
