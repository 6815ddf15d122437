"""Transplant: heads that two tasks share, made to attend on the one as the other task's algorithm would (METHODS_BASES
§7, after Merullo et al. 2024, arXiv:2310.08744).

Where a task fails although its heads are there, the question is whether they look at the wrong place. Their pattern is
set to the place that the algorithm names, and as many other heads of the same layers are set likewise: the null.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError, SubjectError
from isotrace.discovery.method import Metric
from isotrace.stats.bootstrap import mean_interval
from isotrace.subjects.dispatch import patterns_set
from isotrace.subjects.subject import Batch, Subject

Heads = Sequence[tuple[int, int]]
"""(layer, head)."""


@dataclass(frozen=True)
class Transplant:
    """M of every input `[batch]` as it is and with the heads set; `random [draws, batch]` with others set."""

    before: np.ndarray
    after: np.ndarray
    random: np.ndarray

    def row(self, seed: int) -> dict[str, Any]:
        """Mean gain and mean gain over random heads, with 95 % intervals over inputs; `p`: rank of the gain among the
        draws."""
        gain, null = self.after - self.before, self.random - self.before
        over = gain - null.mean(0)
        return {
            "inputs": len(gain), "before": float(self.before.mean()), "after": float(self.after.mean()),
            "gain": float(gain.mean()), "gain_ci": mean_interval(gain, seed), "random": float(null.mean()),
            "over_random": float(over.mean()), "over_random_ci": mean_interval(over, seed),
            "p": float((1 + (null.mean(1) >= gain.mean()).sum()) / (1 + len(null))),
        }  # fmt: skip


@torch.no_grad()
def transplant(
    subject: Subject, heads: Heads, batch: Batch, metric: Metric, wanted: Tensor, *, seed: int, n_random: int = 20
) -> Transplant:
    """`wanted [batch, tokens]`: the place that `heads` shall attend to from each token, −1 where they are left alone.

    Raises InputError for heads that are not there or leave no others in their layers, and for places outside the
    sequence; SubjectError for an encoder–decoder."""
    others = _others(subject, heads)
    if wanted.shape != batch.ids.shape or int(wanted.max()) >= wanted.shape[1]:
        raise InputError(
            f"wanted has shape {tuple(wanted.shape)}: give a place of the sequence, or −1, for every token."
        )
    rng = np.random.default_rng(seed)

    def value(chosen: Heads) -> np.ndarray:
        with attending(subject, chosen, wanted):
            final = subject.run(batch, logits=False).final
        return metric(batch, final).double().cpu().numpy()

    draws = []
    for _ in range(n_random):
        draw = [(layer, int(h)) for layer, (free, n) in others.items() for h in rng.choice(free, n, replace=False)]
        draws.append(value(draw))
    return Transplant(value([]), value(heads), np.stack(draws))


def attending(subject: Subject, heads: Heads, wanted: Tensor):
    """Context in which `heads` put all their weight on `wanted`, see `transplant`."""
    layer_of = {module: layer for layer, module in enumerate(subject.attentions)}

    def pattern_of(module: Any, own: Any, rows: int) -> Tensor:
        pattern = own()
        mine = [h for layer, h in heads if layer == layer_of[module]]
        if not mine:
            return pattern
        places = wanted.to(pattern.device)
        only = torch.nn.functional.one_hot(places.clamp(min=0), pattern.shape[-1]).to(pattern)
        pattern = pattern.clone()
        for h in mine:
            pattern[:, h] = torch.where(places[..., None] < 0, pattern[:, h], only)
        return pattern

    return patterns_set(subject, pattern_of)


def _others(subject: Subject, heads: Heads) -> dict[int, tuple[list[int], int]]:
    """Layer → (heads that are not among `heads`, how many of those there are)."""
    if len(subject.stack_sizes) > 1:
        raise SubjectError(
            f"{subject.source} has cross-attention: transplants are made in encoders and decoders alone."
        )
    if not heads:
        raise InputError("no heads to transplant: name at least one (layer, head).")
    found = {}
    for layer in sorted({layer for layer, _ in heads}):
        n = subject.n_heads(layer) if 0 <= layer < subject.n_layers else 0
        mine = {h for at, h in heads if at == layer}
        if not n or not mine <= set(range(n)):
            raise InputError(f"{subject.source} has no head {layer}.{max(mine)}: see `isotrace subjects`.")
        free = [h for h in range(n) if h not in mine]
        if len(free) < len(mine):
            raise InputError(f"layer {layer} has {len(free)} heads beside {len(mine)}: too few to compare with.")
        found[layer] = free, len(mine)
    return found
