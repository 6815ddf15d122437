"""The gradient of a task's loss at the pretrained weights, through heads that were just drawn; no step is taken.

Reconstructed from the idea of principal gradients (Chen et al. 2024, doi 10.1038/s42004-024-01169-4); details are ours.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from isotrace.base.errors import InputError
from isotrace.subjects.probe import pool
from isotrace.transfer.curvature.loss import summed_gradient
from isotrace.transfer.curvature.subject_losses import subject_loss
from isotrace.transfer.predictors.evidence import Evidence

HEADS, BATCH, BATCHES, WIDTH = 10, 32, 4, 4_096
"""Heads drawn; sequences of a batch at most, and batches at least; width that gradients are projected to."""


@dataclass(frozen=True, eq=False)
class TaskGradient:
    """`mean [WIDTH]`: of the batches' gradients, projected, float64. `noise`: root mean squared distance of a batch's
    gradient from that mean. `source`: the checkpoint's hash: only gradients of one compare."""

    mean: np.ndarray
    noise: float
    source: str

    @property
    def size(self) -> float:
        return float(np.linalg.norm(self.mean))


def task_gradient(evidence: Evidence) -> TaskGradient:
    """Of the weights that the final hidden state depends on; heads depend on seed and number of outputs alone.

    Raises SubjectError for a subject in other digits than float32.
    """
    order = np.random.default_rng((evidence.seed, 13)).permutation(len(evidence.y))
    batches = np.array_split(order, max(BATCHES, -(-len(order) // BATCH)))
    found = gradients(evidence, batches, fresh_loss(evidence))
    mean = found.mean(0)
    noise = np.sqrt(((found - mean) ** 2).sum() / (len(found) - 1))
    assert evidence.subject is not None
    return TaskGradient(mean, float(noise), evidence.subject.files.weights_sha256)


def distance(one: TaskGradient, other: TaskGradient) -> float:
    """‖g/‖g‖ − h/‖h‖‖, 0 to 2; NaN where a gradient is 0. Raises InputError for two checkpoints."""
    if one.source != other.source:
        raise InputError("gradients of two checkpoints have nothing in common: compare tasks for one checkpoint.")
    if not (one.size > 0 and other.size > 0):
        return np.nan
    return float(np.linalg.norm(one.mean / one.size - other.mean / other.size))


Value = Callable[[Tensor, np.ndarray], Tensor]
"""(pooled states `[n, d]`, rows of the evidence they are of) → a scalar."""


def gradients(evidence: Evidence, batches: list[np.ndarray], value: Value) -> np.ndarray:
    """float64 `[batches, WIDTH]`: of `value` for every batch of rows, projected."""
    subject, texts = evidence.subject, evidence.texts
    assert subject is not None
    parts = []
    for rows in batches:
        batch = subject.tokenize([texts[i] for i in rows])
        parts.append(
            (lambda batch=batch: pool(subject, batch, subject.hidden(batch.ids, batch.mask)), _Of(value, rows))
        )
    loss = subject_loss(subject, "fresh heads", parts, len(evidence.y))
    sketched = sketch(len(loss.at), WIDTH, evidence.seed)
    return np.stack([sketched(summed_gradient([part], loss.at)[1]) for part in loss.parts])


class _Of:
    def __init__(self, value: Value, rows: np.ndarray) -> None:
        self.value, self.rows = value, rows

    def loss(self, pooled: Tensor) -> Tensor:
        return self.value(pooled, self.rows)


def fresh_heads(evidence: Evidence) -> Callable[[Tensor], Tensor]:
    """Pooled states `[n, d]` → outputs `[HEADS, n, outputs]` of linear heads on states standardised by the evidence."""
    x, n_outputs = evidence.embeddings, len(evidence.classes) if len(evidence.classes) > 2 else 1
    sd = x.std(0)
    mean, scale = (torch.from_numpy(v).float() for v in (x.mean(0), np.where(sd > 1e-8, sd, 1.0)))
    generator = torch.Generator().manual_seed(evidence.seed)
    weight = torch.randn(HEADS, x.shape[1], n_outputs, generator=generator) / x.shape[1] ** 0.5

    def outputs(pooled: Tensor) -> Tensor:
        return torch.einsum("nd,hdo->hno", (pooled - mean.to(pooled)) / scale.to(pooled), weight.to(pooled))

    return outputs


def fresh_loss(evidence: Evidence) -> Value:
    """Mean over heads and rows of the squared error in standard deviations, or of the cross-entropy in nats."""
    heads, y = fresh_heads(evidence), torch.from_numpy(evidence.y)
    z = (y - y.mean()) / y.std(correction=0)

    def value(pooled: Tensor, rows: np.ndarray) -> Tensor:
        outputs, at = heads(pooled), torch.from_numpy(rows)
        if evidence.kind == "regression":
            return (outputs[..., 0] - z[at].to(outputs)).square().mean()
        if outputs.shape[2] == 1:
            return functional.binary_cross_entropy_with_logits(outputs[..., 0], y[at].to(outputs).expand(HEADS, -1))
        return functional.cross_entropy(outputs.flatten(0, 1), y[at].long().to(outputs.device).repeat(HEADS))

    return value


def sketch(size: int, width: int, seed: int) -> Callable[[Tensor], np.ndarray]:
    """`[size]` → float64 `[width]`: every entry with a random sign into a random place (Charikar et al. 2002).

    It keeps inner products as well as a Gaussian projection does, in `size` steps in place of size · width.
    """
    generator = torch.Generator().manual_seed(seed)
    place = torch.randint(width, (size,), generator=generator)
    sign = 2 * torch.randint(2, (size,), generator=generator) - 1

    def sketched(vector: Tensor) -> np.ndarray:
        found = torch.zeros(width, dtype=torch.float64)
        return found.index_add_(0, place, vector.detach().cpu().double() * sign).numpy()

    return sketched
