"""Sequences that a subject writes: the next token, again and again, or masked tokens filled one after the other.

Every step is a whole pass without a cache, so that interventions mean the same positions at every step.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from isotrace.base.errors import InputError, SubjectError
from isotrace.base.settings import checked_seed

if TYPE_CHECKING:
    from isotrace.subjects.subject import Batch, Memory, Subject

Order = Literal["random", "confident", "at_once"]


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 takes the likeliest token. top_p: sample from the fewest tokens that hold this probability.
    max_new: tokens to add at most (causal, encoder–decoder). order, of masked tokens: one after another at `random`,
    always the one with the lowest entropy next (`confident`), or all from one pass (`at_once`). Raises InputError for
    numbers that mean nothing."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new: int = 64
    order: Order = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        if not self.temperature >= 0 or not 0 < self.top_p <= 1 or self.max_new < 1:
            raise InputError(f"{self} cannot be sampled: temperature ≥ 0, 0 < top_p ≤ 1 and max_new ≥ 1.")

    def probabilities(self, logits: Tensor) -> Tensor:
        """`[..., vocabulary]`, renormalised."""
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
        p = (logits / self.temperature).softmax(-1)
        ordered, indices = p.sort(-1, descending=True)
        kept = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self.top_p, 0)
        kept = torch.zeros_like(p).scatter(-1, indices, kept)
        return kept / kept.sum(-1, keepdim=True)


@dataclass(frozen=True)
class Generated:
    """`ids[i]` int64 `[tokens]` and `sequences[i]`, the text without special tokens, of row i. `ended[i]`: the row
    ended by itself (causal, encoder–decoder), or has no mask left."""

    ids: tuple[Tensor, ...]
    sequences: tuple[str, ...]
    ended: tuple[bool, ...]


@torch.no_grad()
def sampled(
    subject: "Subject", batch: "Batch", sampling: Sampling, generator: torch.Generator | None = None
) -> Generated:
    """Raises SubjectError without a head, InputError for a masked subject's batch without a masked token."""
    if not subject.has_head:
        raise SubjectError(f"{subject.source} has no language-model head, so it writes nothing: take one that has.")
    generator = generator or torch.Generator().manual_seed(sampling.seed)
    if subject.objective == "masked":
        rows, ended = _filled(subject, batch, sampling, generator)
    else:
        rows, ended = _continued(subject, batch, sampling, generator)
    texts = subject.tokenizer.batch_decode([row.tolist() for row in rows], skip_special_tokens=True)
    return Generated(tuple(rows), tuple(text.replace(" ", "") for text in texts), tuple(ended))


def _drawn(p: Tensor, generator: torch.Generator) -> Tensor:
    """One of every row of `p [n, vocabulary]`; drawn on the CPU, so that devices agree."""
    return torch.multinomial(p.cpu(), 1, generator=generator)[:, 0].to(p.device)


def _filled(subject: "Subject", batch: "Batch", sampling: Sampling, generator: torch.Generator) -> Any:
    ids, left, rng = batch.ids.clone(), (batch.ids == subject.mask_id) & batch.mask, random.Random(sampling.seed)
    if not bool(left.any()):
        raise InputError(f"{subject.source} fills masked tokens, and none is masked: mask some, see mask_some.")
    special = torch.tensor(subject.tokenizer.all_special_ids, device=ids.device)
    while bool(left.any()):
        logits = subject.head(subject.hidden(ids, batch.mask)).index_fill(-1, special, -torch.inf)
        p = sampling.probabilities(logits)
        entropy = -(p * p.clamp(min=1e-30).log()).sum(-1)
        for row in torch.nonzero(left.any(1))[:, 0].tolist():
            places = torch.nonzero(left[row])[:, 0]
            if sampling.order == "confident":
                places = places[entropy[row, places].argmin()][None]
            elif sampling.order == "random":
                places = places[rng.randrange(len(places))][None]
            ids[row, places] = _drawn(p[row, places], generator)
            left[row, places] = False
    return [row[mask] for row, mask in zip(ids, batch.mask, strict=True)], [True] * len(ids)


def _continued(subject: "Subject", batch: "Batch", sampling: Sampling, generator: torch.Generator) -> Any:
    """A causal subject goes on behind its row; the decoder of an encoder–decoder starts from nothing."""
    end, device = subject.tokenizer.eos_token_id, batch.ids.device
    never = [i for i in subject.tokenizer.all_special_ids if i != end]
    memory, begin = None, [row[mask].tolist() for row, mask in zip(batch.ids, batch.mask, strict=True)]
    if len(subject.stack_sizes) > 1:
        memory, begin = subject.encode(batch), [[start_of(subject)] for _ in begin]
    rows, ended = [list(row) for row in begin], [False] * len(begin)
    for _ in range(sampling.max_new):
        open_rows = [i for i, done in enumerate(ended) if not done and len(rows[i]) < subject.max_tokens]
        if not open_rows:
            break
        logits = next_logits(subject, [rows[i] for i in open_rows], None if memory is None else memory[open_rows])
        logits = logits.index_fill(-1, torch.tensor(never, device=device, dtype=torch.long), -torch.inf)
        for i, token in zip(open_rows, _drawn(sampling.probabilities(logits), generator).tolist(), strict=True):
            rows[i].append(token)
            ended[i] = token == end
    return [torch.tensor(row[memory is not None :]) for row in rows], ended


def start_of(subject: "Subject") -> int:
    """The token that the decoder of an encoder–decoder reads first."""
    return subject.model.config.decoder_start_token_id


def read_so_far(subject: "Subject", rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, mask), `[rows, tokens]`: what the subject is asked so that the last place of every row predicts what
    follows. Rows of a decoder begin with `start_of`."""
    if subject.objective == "denoising":  # nobody reads the token that is asked for: any that is no special one
        filler = int(subject.is_special.long().argmin())
        rows = [[*row[1:], filler] for row in rows]
    return padded(subject, rows)


def padded(subject: "Subject", rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, mask), `[rows, tokens]`, of rows of several lengths."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), subject.pad_id)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    return ids.to(subject.device), mask.to(subject.device)


def next_logits(subject: "Subject", rows: Sequence[Sequence[int]], memory: "Memory | None" = None) -> Tensor:
    """`[rows, vocabulary]`: of the token behind each of `rows`, from one whole pass."""
    ids, mask = read_so_far(subject, rows)
    subject = subject if memory is None else subject.translating(memory)
    last = torch.tensor([len(row) - 1 for row in rows], device=ids.device)
    return subject.head(subject.hidden(ids, mask)[torch.arange(len(rows), device=ids.device), last])
