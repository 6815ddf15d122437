"""Representation injection: h_l at the last token of the cause ← h_l + λ h_{l*}, in all layers behind l*.

l*, where the residual stream at the cause recovers most, and λ are chosen on sequences of their own; what is gained is
told of held-out ones, beside random directions of the same norm. Into the clean input, to see whether more of the
cause helps, and into the corrupt one, to see whether the cause's representation alone stands in for its tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from isotrace.attribution.ablation import fitting
from isotrace.attribution.maps.many import Maps
from isotrace.attribution.maps.pair import Pair
from isotrace.base.progress import Progress, silent
from isotrace.interventions import Add, Intervention, Plan, Residuals, Select
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.subject import Batch

STRENGTHS = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
RANDOM = 8
INPUTS = ("clean", "corrupt")
GAINS = ("accuracy", "probability")


@dataclass(frozen=True)
class Gain:
    """Of held-out sequences, with 95 % intervals over them: `before` (accuracy, P), what the cause's representation and
    random directions of its norm add, and by how much the former adds more."""

    before: dict[str, float]
    own: dict[str, tuple[float, float, float]]
    random: dict[str, tuple[float, float, float]]
    beyond: dict[str, tuple[float, float, float]]


@dataclass(frozen=True)
class Injection:
    """`layer` is l*; `strengths`: input → the λ chosen for it; `gains`: input → what it gains. `n_validation`, `n_held`
    count pairs. `reason`: why nothing was injected, then all else is empty."""

    layer: int | None
    strengths: dict[str, float]
    gains: dict[str, Gain]
    n_validation: int
    n_held: int
    reason: str | None = None


def injection(maps: Maps, held: np.ndarray | None, progress: Progress = silent) -> Injection:
    """`held` bool `[pairs]`: told of; the others choose. None: there is no way to part them."""
    if held is None or held.all() or not held.any():
        return _none("validation and held-out sequences must be of different groups, and there is only one")
    if maps.ones[0].pair.answer.measure != "probability":
        return _none("the target is no probability, so that no answer is right or wrong")
    layer = maps.peak(~held)
    if layer + 1 >= maps.values.shape[-1]:
        return _none(f"recovery peaks in the last layer, {layer}: there is no later one")
    numbered = progress([*enumerate(maps.ones)], "injecting")
    found = np.stack([injected(one.pair, layer, (maps.settings.seed, 13, i)) for i, one in numbered])
    before, gain = found[:, :, :, 0, 0], found[:, :, :, 1:] - found[:, :, :, :1, :1]
    strengths, gains = {}, {}
    for i, name in enumerate(INPUTS):
        own = gain[~held, i, :, :, 0].mean(0)  # [accuracy and P, λ]
        best = max(range(len(STRENGTHS)), key=lambda j, own=own: (own[0, j], own[1, j]))
        strengths[name] = STRENGTHS[best]
        one, others = gain[:, i, :, best, 0], gain[:, i, :, best, 1:].mean(-1)
        start = maps.means(before[:, i], held)[0]
        gains[name] = Gain(
            dict(zip(GAINS, start.tolist(), strict=True)),
            *(_told(maps, values, held) for values in (one, others, one - others)),
        )
    return Injection(layer, strengths, gains, int((~held).sum()), int(held.sum()))


def _none(reason: str) -> Injection:
    return Injection(None, {}, {}, 0, 0, reason)


def _told(maps: Maps, values: np.ndarray, held: np.ndarray) -> dict[str, tuple[float, float, float]]:
    draws = maps.means(values, held)
    low, high = maps.bounds(draws)
    return {name: (float(draws[0, i]), float(low[i]), float(high[i])) for i, name in enumerate(GAINS)}


@torch.no_grad()
def injected(pair: Pair, layer: int, seed: Sequence[int]) -> np.ndarray:
    """float64 `[inputs, accuracy and P, 1 + strengths, 1 + random]`: nothing added in the first row, then every λ with
    the cause's own representation and with random directions."""
    subject, last = pair.subject, pair.cause[-1]
    h = Residuals().record(subject, pair.clean)[0][layer][0, last, 0]
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal((RANDOM, len(h)))).to(h)
    directions = torch.cat([h[None], drawn / drawn.norm(dim=1, keepdim=True) * h.norm()])
    strengths = torch.tensor([0.0, *STRENGTHS]).to(h)
    added = (strengths[:, None, None] * directions).flatten(0, 1)
    where = Select(tuple(range(layer + 1, subject.n_layers)), None, (last,))
    found = []
    for batch, noise in ((pair.clean, Plan()), (pair.corrupt, pair.noise)):
        parts = []
        for part in added.split(fitting(128, batch.ids.shape[1])):
            copies = Batch(batch.ids.expand(len(part), -1), batch.mask.expand(len(part), -1), (), ())
            plan = Plan((Intervention(Residuals(), Add(part[:, None, None]), where),))
            with fast_kernels(subject), subject.edited(noise), subject.edited(plan):
                hidden = pair.answer.hidden(subject, copies)
            value, right = pair.answer.read(subject, copies, hidden)
            parts.append(torch.stack([right.double(), value.double()]).cpu())
        found.append(torch.cat(parts, 1).unflatten(1, (len(strengths), 1 + RANDOM)))
    return torch.stack(found).numpy()
