"""Harvesting activations: one pass per batch, without gradients or head, that stops at the last hookpoint."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from isotrace.activations.corpus import Corpus, Plan
from isotrace.base.errors import SubjectError
from isotrace.base.settings import child_seed
from isotrace.subjects.dispatch import hookpoints_edited
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Batch, Subject

__all__ = [
    "Corpus", "Plan", "activations", "mask_rate_of", "mask_some", "masked_batches", "mlp_activations", "record",
    "width",
]  # fmt: skip
MASK_RATE = 0.15
"""The usual share of masked tokens, where the subject fills masks."""


class _Done(Exception):  # noqa: N818
    """Every hookpoint has been seen."""


def width(subject: Subject, hookpoints: Sequence[str]) -> int:
    """The last dimension of the tensors at `hookpoints`: d_ff at `neuron`, heads · d_head at `head_out`, d_model
    elsewhere.

    Raises SubjectError for a hookpoint the subject does not have, and for none, repeated or unequally wide ones, and
    where some have a row per token and others one per sequence.
    """
    is_pooled(hookpoints)
    if not hookpoints or len(set(hookpoints)) < len(hookpoints):
        raise SubjectError("hookpoints must be named, each once: drop the repetition or name at least one.")
    found = set()
    for name in hookpoints:
        subject.hookpoint(name)
        _, layer, kind = name.split(".")
        if kind == "neuron":
            found.add(len(subject.neuron_writes(int(layer))[0]))
        else:
            at_heads = kind == "head_out"
            found.add(subject.n_heads(int(layer)) * subject.d_head(int(layer)) if at_heads else subject.d_model)
    if len(found) > 1:
        raise SubjectError(f"hookpoints {min(found)} and {max(found)} wide do not fit one tensor: harvest them apart.")
    return found.pop()


def activations(subject: Subject, batch: Batch, hookpoints: Sequence[str]) -> Tensor:
    """`[n_hookpoints, tokens, d]` of the real tokens of `batch`, row after row, padding dropped, or of its sequences at
    pooled hookpoints; d and errors as in `width`, dtype that of the weights."""
    pooled, d = is_pooled(hookpoints), width(subject, hookpoints)
    full = pooled or bool(batch.mask.all())
    shape = (len(hookpoints), len(batch.mask) if pooled else int(batch.mask.sum()), d)
    out = torch.empty(shape, dtype=subject.model.dtype, device=batch.ids.device)

    def take(index: int, x: Tensor) -> None:
        out[index] = x.flatten(0, 1) if full else x[batch.mask]

    record(subject, batch, hookpoints, take)
    return out


def record(subject: Subject, batch: Batch, hookpoints: Sequence[str], take: Callable[[int, Tensor], None]) -> None:
    """Run `batch` and call `take(i, x [batch, tokens, d])` with the tensor at every `hookpoints[i]`, of one token at
    pooled ones.

    Always in the precision of the weights, whatever autocast surrounds it. `take` must copy what it keeps.
    `hookpoints` hold no repetition, see `width`. Raises SubjectError for one that the pass does not reach.
    """
    left = set(hookpoints)

    def see(index: int, x: Tensor) -> Tensor:
        take(index, x)
        left.discard(hookpoints[index])
        if not left:
            raise _Done
        return x

    edits = {name: partial(see, index) for index, name in enumerate(hookpoints)}
    with (
        torch.no_grad(),
        torch.autocast(batch.ids.device.type, enabled=False),
        fast_kernels(subject),
        hookpoints_edited(subject, edits),
        suppress(_Done),
    ):
        subject.hidden(batch.ids, batch.mask)
    if left:
        raise SubjectError(f"{subject.source} never computed {min(left)}: its family names the wrong module there.")


def mask_rate_of(subject: Subject, asked: float | None) -> float:
    """The share of tokens to mask: what is `asked` for, or the usual one, which is 0 for a subject that fills no masks,
    and for a fine-tuned one or one that reconstructs, which read whole sequences.

    Raises SubjectError for a rate above 0 on a subject that fills no masks, or that reconstructs.
    """
    if asked is None:
        return 0.0 if subject.mask_id is None or subject.task is not None or subject.decodes else MASK_RATE
    if asked > 0 and subject.decodes:
        raise SubjectError("what is decoded from a latent is asked of whole sequences: leave the masking rate out.")
    if asked > 0 and subject.mask_id is None:
        raise SubjectError(f"{subject.source} fills no masks: leave the masking rate out, or set it to 0.")
    return asked


def mask_some(subject: Subject, batch: Batch, rate: float, generator: torch.Generator) -> tuple[Batch, Tensor]:
    """Replace tokens by the mask token, each with probability `rate`, specials never: (batch, chosen bool).

    Raises SubjectError as `mask_rate_of`.
    """
    rate = mask_rate_of(subject, rate)
    drawn = torch.rand(batch.ids.shape, generator=generator) < rate  # on the CPU, so that devices agree
    chosen = drawn.to(batch.ids.device) & ~subject.special(batch.ids)
    ids = batch.ids if subject.mask_id is None else batch.ids.masked_fill(chosen, subject.mask_id)
    return batch.with_ids(ids), chosen


def mlp_activations(subject: Subject, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """(mlp_in, mlp_out, final) with shapes `[n_layers, batch, tokens, d_model]` twice, `[batch, tokens, d_model]`."""
    layers = range(subject.n_layers)
    names_in, names_out = ([f"layers.{i}.mlp_{side}" for i in layers] for side in ("in", "out"))
    output = subject.run(batch, capture=[*names_in, *names_out], logits=False)
    stacked = [torch.stack([output.captured[n] for n in names]) for names in (names_in, names_out)]
    return stacked[0], stacked[1], output.final


def masked_batches(
    subject: Subject,
    corpus: Corpus,
    tokens: int,
    rate: float,
    seed: int,
    start: int = 0,
    *,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[int, Batch, Tensor]]:
    """Endless (number, batch, chosen) from this rank's batch number `start` on. Every second batch is masked at
    `rate`, the others are whole, since probes read unmasked input. Of `world_size` ranks, rank r takes batches
    r, r + world_size, … of the common order."""
    plan = Plan(corpus.lengths, tokens, seed)
    per_epoch, current, epoch = plan.per_epoch(), -1, []
    number = start
    while True:
        overall = number * world_size + rank
        if overall // per_epoch != current:
            current = overall // per_epoch
            epoch = plan.epoch(current)
        generator = torch.Generator().manual_seed(child_seed(seed, overall))
        batch = corpus.batch(epoch[overall % per_epoch]).to(subject.device)
        batch, chosen = mask_some(subject, batch, rate if number % 2 == 0 else 0.0, generator)
        yield number, batch, chosen
        number += 1
