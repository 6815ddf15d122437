"""The head: pooled hidden states, standardised, then a linear map; and how it is written as a readout of raw states."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from isotrace.datasets.tasks import Example
from isotrace.probing.states import pooled_states
from isotrace.subjects.probe import Pool, Probe, ProbeConfig
from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.tasks import Property, TaskTable


@dataclass(frozen=True, eq=False)
class Scale:
    """What inputs and numbers are standardised with: `mean`, `sd [d]` of pooled states, and of the labels of every
    output, `y_mean`, `y_sd [outputs]` (0 and 1 where these are no numbers). Float64."""

    mean: np.ndarray
    sd: np.ndarray
    y_mean: np.ndarray
    y_sd: np.ndarray


def scale_of(states: np.ndarray, table: TaskTable, rows: np.ndarray) -> Scale:
    """`states [rows, d]` of the rows that are learned from. What does not vary is left as it is."""
    x = states.astype(np.float64)
    sd = x.std(0)
    y_mean, y_sd = np.zeros(table.n_outputs), np.ones(table.n_outputs)
    for t, prop in enumerate(table.properties):
        if prop.kind == "regression":
            own = table.y[rows, t]
            y_mean[prop.columns], y_sd[prop.columns] = np.nanmean(own), np.nanstd(own)
    return Scale(x.mean(0), np.where(sd > 1e-8 * (1 + np.abs(x.mean(0))), sd, 1.0), y_mean, y_sd)


class Head(nn.Module):
    """Standardised pooled states `[..., d]` → outputs `[..., outputs]`: numbers in standard deviations, log-odds of
    two classes, logits of more. It starts at zero, so that nothing of it is drawn."""

    mean: Tensor
    sd: Tensor

    def __init__(self, scale: Scale, pool: Pool) -> None:
        super().__init__()
        self.scale = scale
        self.pool: Pool = pool
        self.register_buffer("mean", torch.from_numpy(scale.mean).float())
        self.register_buffer("sd", torch.from_numpy(scale.sd).float())
        self.linear = nn.Linear(len(scale.mean), len(scale.y_mean))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.linear((pooled - self.mean) / self.sd)

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """(`[d, outputs]`, `[outputs]`) float64 on raw pooled states, numbers in the unit of their labels."""
        weight = self.linear.weight.detach().double().cpu().numpy().T / self.scale.sd[:, None]
        bias = self.linear.bias.detach().double().cpu().numpy() - self.scale.mean @ weight
        return weight * self.scale.y_sd, bias * self.scale.y_sd + self.scale.y_mean


def loss(outputs: Tensor, y: Tensor, properties: Sequence[Property], scale: Scale) -> Tensor:
    """Mean over the labels that are there of `y [rows, properties]`: squared error in standard deviations, or
    cross-entropy. `outputs [rows, outputs]`."""
    total, count = outputs.sum() * 0, 0
    for t, prop in enumerate(properties):
        there = torch.isfinite(y[:, t])
        if not bool(there.any()):
            continue
        own, label = outputs[there, prop.columns], y[there, t]
        if prop.kind == "regression":
            (mean,), (sd,) = scale.y_mean[prop.columns], scale.y_sd[prop.columns]
            total = total + ((own[:, 0] - (label - mean) / sd) ** 2).sum()
        elif prop.n_outputs == 1:
            total = total + functional.binary_cross_entropy_with_logits(own[:, 0], label.to(own), reduction="sum")
        else:
            total = total + functional.cross_entropy(own, label.long(), reduction="sum")
        count += int(there.sum())
    return total / max(count, 1)


@dataclass(frozen=True, eq=False)
class Readout:
    """`weight [d_pooled, outputs]`, `bias [outputs]` float64 of the pooled hidden states of `layers`, see
    `Subject.hidden`; numbers in the unit of their labels."""

    layers: tuple[int, ...]
    pool: Pool
    weight: np.ndarray
    bias: np.ndarray

    def outputs(self, subject: Subject, examples: Sequence[Example]) -> np.ndarray:
        """`[rows, outputs]`, a row per example or labelled token."""
        return pooled_states(subject, examples, self.layers, self.pool).astype(float) @ self.weight + self.bias

    def probe(self, prop: Property, table: TaskTable, rows: np.ndarray, weights_sha256: str, by: str) -> Probe:
        """What reads one property; `rows`: those it was fitted on; `by`: the method."""
        y = table.y[rows, table.properties.index(prop)]
        number = prop.kind == "regression"
        about = prop.label if prop.n_outputs > 1 or number else f"{prop.label}, log-odds of {prop.outputs[0]}"
        config = ProbeConfig(
            "isotrace-probe", 2, prop.label, f"{about} (isotrace adapt, {by})",
            "regression" if number else "classification", prop.outputs,
            prop.label if number else "log-odds" if prop.n_outputs == 1 else "logit", self.layers, self.pool,
            weights_sha256, float(np.nanmean(y)) if number else None, float(np.nanstd(y)) if number else None,
        )  # fmt: skip
        weight, bias = self.weight[:, prop.columns], self.bias[prop.columns]
        return Probe(config, torch.from_numpy(weight.copy()).float(), torch.from_numpy(bias.copy()).float())
