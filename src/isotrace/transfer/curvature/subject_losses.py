"""Losses of a subject as functions of its weights: of masked tokens, and of a task with a fitted head.

A pass runs the subject's own modules with other weights in their places (`torch.func.functional_call`), in eval mode
and without dropout; the subject itself does not change. Attention is plain softmax, which has a double backward on
every device; fused kernels have none on CPUs.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from isotrace.base.errors import InputError, SubjectError
from isotrace.subjects.probe import Probe, pool
from isotrace.subjects.subject import Batch, Subject
from isotrace.transfer.curvature.loss import Block, Loss, laid_out


def masked_loss(subject: Subject, sequences: Sequence[str], seed: int, *, share: float = 0.15, rows: int = 32) -> Loss:
    """Mean cross-entropy (nats) of masked tokens: in every sequence `share` of the real, non-special tokens, at least
    one, drawn once and all hidden by the mask token. Batches hold `rows` sequences of similar length; an example is a
    masked token.

    Raises SubjectError for a subject that fills no masks or is not in float32, InputError as `Subject.tokenize` and for
    a sequence of special tokens only.
    """
    if subject.mask_id is None or not subject.has_head:
        raise SubjectError(f"{subject.source} fills no masks: the loss of masked tokens needs a masked subject.")
    if not 0 < share <= 1:
        raise InputError(f"share = {share}: give a share of the tokens above 0 and up to 1.")
    generator = torch.Generator().manual_seed(seed)
    masked = [_masked(subject, batch, share, generator) for batch, _ in _batches(subject, sequences, rows)]
    total = sum(len(truth) for *_, truth in masked)

    parts = []
    for batch, chosen, truth in masked:

        def logits(batch: Batch = batch, chosen: Tensor = chosen) -> Tensor:
            return subject.head(subject.hidden(batch.ids, batch.mask)[chosen])

        parts.append((logits, _Choice(truth, total)))
    return subject_loss(subject, "masked tokens", parts, total)


def task_loss(
    subject: Subject, probe: Probe, sequences: Sequence[str], labels: Sequence[float], *, rows: int = 32
) -> Loss:
    """Mean loss of `probe`, which does not change: cross-entropy (nats) of classes, `labels` being their indices, or
    the squared error in units of the sd of its labels.

    Raises InputError as `Subject.tokenize`, for labels that are no such numbers and a probe of tokens, SubjectError for
    a subject not in float32.
    """
    known, sd = probe.config, probe.config.sd
    if known.pool == "token":
        raise InputError(f"probe {known.name!r} reads every token: a task loss needs one that pools them.")
    if len(labels) != len(sequences):
        raise InputError(f"{len(labels)} labels for {len(sequences)} sequences: give one for each.")
    n_classes, n = max(2, len(known.outputs)), len(sequences)
    valid = range(n_classes) if probe.task == "classification" else None
    if wrong := [y for y in labels if not math.isfinite(y) or (valid is not None and y not in valid)]:
        raise InputError(f"the label {wrong[0]} is no {probe.task} label of probe {known.name!r}: correct or drop it.")
    if valid is None and (sd is None or len(known.outputs) != 1):
        raise InputError(f"probe {known.name!r} is no regression of one label with a known sd: fit it again.")
    parts = []
    for batch, order in _batches(subject, sequences, rows):
        y = torch.tensor([labels[i] for i in order], device=subject.device)

        def outputs(batch: Batch = batch) -> Tensor:
            return probe.value(pool(subject, batch, subject.hidden(batch.ids, batch.mask, known.layers), known.pool))

        def log_odds(outputs: Callable[[], Tensor] = outputs) -> Tensor:
            """Of two classes, as logits of both."""
            found = outputs()
            return torch.cat([torch.zeros_like(found), found], 1)

        if valid is None:
            parts.append((outputs, _Number(y[:, None].float(), cast(float, sd), n)))
        else:
            parts.append((log_odds if len(known.outputs) == 1 else outputs, _Choice(y.long(), n)))
    return subject_loss(subject, f"task {known.name}", parts, n)


def parameters_of(subject: Subject, loss: Loss) -> Tensor:
    """`[P]`: the subject's weights laid out as those of `loss`, for a barrier or a map. Raises SubjectError where a
    name or shape differs."""
    found = dict(subject.model.named_parameters())
    for block in loss.blocks:
        shape = tuple(found[block.name].shape) if block.name in found else None
        if shape != block.shape:
            raise SubjectError(
                f"{subject.source} has {block.name} of shape {shape}, {loss.name} of {block.shape}: only models of one "
                "architecture and vocabulary share parameters."
            )
    return _flat([found[block.name] for block in loss.blocks]).to(loss.at)


class _Choice:
    """Cross-entropy of `logits [n, classes]`, as its share of the mean over `total` examples."""

    def __init__(self, truth: Tensor, total: int) -> None:
        self.truth, self.total = truth, total

    def loss(self, logits: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, self.truth, reduction="sum") / self.total

    def draw(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        chance = logits.detach().softmax(-1)
        drawn = torch.multinomial(chance, 1, generator=generator)[:, 0]
        return nn.functional.cross_entropy(logits, drawn, reduction="sum") / math.sqrt(self.total)


class _Number:
    """Squared error of `values [n, 1]` in units of `sd`, likewise: its second derivative is 2/sd²."""

    def __init__(self, truth: Tensor, sd: float, total: int) -> None:
        self.truth, self.sd, self.total = truth, sd, total

    def loss(self, values: Tensor) -> Tensor:
        return ((values - self.truth) / self.sd).square().sum() / self.total

    def draw(self, values: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(values.shape, generator=generator, device=values.device, dtype=values.dtype)
        return (noise * values).sum() / self.sd * math.sqrt(2 / self.total)


class _With(nn.Module):
    """What is computed of a model, as a call that can be handed other weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()


def subject_loss(
    subject: Subject, name: str, parts: Sequence[tuple[Callable[[], Tensor], Any]], n_examples: int
) -> Loss:  # fmt: skip
    """`parts`: (what a pass of the subject computes, an error whose `loss` makes a scalar of that and whose `draw` is
    as `Loss.draws` wants it, where that is used). Raises SubjectError for a subject not in float32."""
    subject.require_float32("a curvature")
    model, within = subject.model, _With(subject.model)
    weights = dict(model.named_parameters())  # tied ones once
    blocks, used = _used(model, weights, within, parts)

    def run(theta: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        # one split has one backward, which joins the gradients; a slice each would write P zeros for every block
        pieces = theta.split([block.size for block in blocks])
        given = {f"model.{b.name}": piece.view(b.shape) for b, piece in zip(blocks, pieces, strict=True)}
        return functional_call(within, given, (compute,))

    return Loss(
        f"{name}, {subject.source}",
        _flat([weights[name] for name in used]),
        blocks,
        tuple(lambda theta, c=compute, e=error: e.loss(run(theta, c)) for compute, error in parts),
        n_examples,
        tuple(
            lambda theta, generator, c=compute, e=error: e.draw(run(theta, c), generator) for compute, error in parts
        ),
        tuple(name for name in weights if name not in used),
    )


def _used(
    model: nn.Module, weights: dict[str, nn.Parameter], within: nn.Module, parts: Sequence[Any]
) -> tuple[tuple[Block, ...], list[str]]:
    """The parameters that the first part depends on: a pooler or a contact head has no gradient."""
    compute, error = parts[0]
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    value = error.loss(functional_call(within, {f"model.{name}": leaf for name, leaf in leaves.items()}, (compute,)))
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    used = [name for name, gradient in zip(leaves, gradients, strict=True) if gradient is not None]
    # transformers' Conv1D holds the transpose of what nn.Linear does
    turned = {f"{path}.weight" for path, module in model.named_modules() if isinstance(module, Conv1D)}
    return laid_out([(name, tuple(weights[name].shape), int(name in turned)) for name in used]), used


def _flat(weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in weights])


def _batches(subject: Subject, sequences: Sequence[str], rows: int) -> Iterator[tuple[Batch, list[int]]]:
    """(batch, places of its sequences), of similar length, shortest first. Raises InputError for no sequences."""
    if not sequences or rows < 1:
        raise InputError(f"{len(sequences)} sequences in batches of {rows}: give at least one of both.")
    lengths = subject.tokenize(sequences).mask.sum(1)
    order: list[int] = torch.argsort(lengths, stable=True).tolist()
    for start in range(0, len(order), rows):
        places = order[start : start + rows]
        yield subject.tokenize([sequences[i] for i in places]), places


def _masked(subject: Subject, batch: Batch, share: float, generator: torch.Generator) -> tuple[Batch, Tensor, Tensor]:
    """(masked batch, chosen `[rows, tokens]` bool, the tokens that stood there)."""
    real = batch.mask & ~subject.special(batch.ids)
    counts = real.sum(1)
    if not bool(counts.all()):
        raise InputError("a sequence holds special tokens only: nothing in it can be masked.")
    order = torch.rand(batch.ids.shape, generator=generator).to(real.device).masked_fill(~real, 2).argsort(1)
    rank = order.argsort(1)
    chosen = rank < (share * counts).round().clamp(min=1)[:, None]
    return batch.with_ids(batch.ids.masked_fill(chosen, cast(int, subject.mask_id))), chosen, batch.ids[chosen]
