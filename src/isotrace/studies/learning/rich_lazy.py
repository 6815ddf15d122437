"""Rich or lazy, where it is known: linear nets of two layers that learn one direction of many by gradient descent.

f(x) = scale · aᵀ W x. In the tangent-kernel scaling weights are standard normal and scale = 1 / √(width · d): the
wider, the lazier (Jacot et al. 2018, arXiv:1806.07572). From small weights, with scale 1, both layers must grow along
what is to be learned before anything else happens, which is rich: the representation becomes one direction. The
tangent kernel of so shallow a net is ‖a‖² XXᵀ + scale² XWᵀWXᵀ, whose first part only grows, so that its alignment stays
high also there: read the representation. Measures: see `regimes`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isotrace.stats.bootstrap import mean_interval
from isotrace.studies.learning.regimes import (
    alignment,
    centred,
    effective_rank,
    kernel,
    tangent_kernel,
    weight_movement,
)
from isotrace.studies.study import Outcome, Setting, study

INPUTS, DIM, STEPS = 64, 16, 20_000
LEARNED = 0.01
"""Share of the first loss at which training stops."""


@dataclass(frozen=True)
class Net:
    """`spread`: sd of the first weights. `rate`: of gradient descent. Scale of the output: 1 in small nets."""

    name: str
    width: int
    spread: float
    rate: float
    tangent: bool

    def scale(self) -> float:
        return (self.width * DIM) ** -0.5 if self.tangent else 1.0


NETS = (
    Net("tangent-kernel scaling", 64, 1.0, 1.0, True),
    Net("tangent-kernel scaling", 512, 1.0, 1.0, True),
    Net("tangent-kernel scaling", 4_096, 1.0, 1.0, True),
    Net("small first weights", 64, 1e-3, 0.1, False),
)


class Linear(nn.Module):
    """`forward`: `[n, DIM]` → `[n]`."""

    def __init__(self, net: Net, generator: torch.Generator) -> None:
        super().__init__()
        self.scale = net.scale()
        self.inner = nn.Parameter(net.spread * torch.randn(net.width, DIM, generator=generator))
        self.outer = nn.Parameter(net.spread * torch.randn(net.width, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x @ self.inner.T) @ self.outer


def measured(net: Net, seed: int) -> dict[str, float]:
    """One net, trained until its loss is `LEARNED` of the first, or for `STEPS`; what moved."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(INPUTS, DIM, generator=generator)
    wanted = x @ torch.nn.functional.normalize(torch.randn(DIM, generator=generator), dim=0)
    model = Linear(net, generator)

    def seen() -> tuple[Tensor, Tensor, Tensor]:
        tangent = tangent_kernel(model, lambda i: model(x[i : i + 1])[0], INPUTS)
        return tangent, kernel((x @ model.inner.T).detach()), model.inner.detach().clone()

    before, first, taken = seen(), None, STEPS
    for step in range(STEPS):
        loss = (model(x) - wanted).square().mean() / 2
        first = loss.item() if first is None else first
        if loss.item() <= LEARNED * first:
            taken = step
            break
        gradients = torch.autograd.grad(loss, [*model.parameters()])
        with torch.no_grad():
            for weight, gradient in zip(model.parameters(), gradients, strict=True):
                weight -= net.rate * gradient
    after = seen()
    return {
        "steps": float(taken),
        "tangent": alignment(before[0], after[0]),
        "tangent_centred": alignment(centred(before[0]), centred(after[0])),
        "representation": alignment(before[1], after[1]),
        "representation_centred": alignment(centred(before[1]), centred(after[1])),
        "movement": weight_movement(before[2], after[2]),
        "rank_before": effective_rank(before[2]),
        "rank_after": effective_rank(after[2]),
    }


@study("rich_lazy", "linear nets that are rich or lazy by construction: weight movement and alignment of kernels")
def rich_lazy(setting: Setting) -> Outcome:
    n_seeds, rows = 3 if setting.quick else 20, []
    for net in setting.progress(NETS, "training linear nets"):
        found = [measured(net, setting.seed + s) for s in range(n_seeds)]
        row: dict[str, Any] = {"net": net.name, "width": net.width, "seeds": n_seeds}
        for name in found[0]:
            values = np.array([f[name] for f in found])
            row |= {name: float(values.mean()), f"{name}_ci": mean_interval(values, setting.seed)}
        rows.append(row)
    note = "alignment of the kernels before and after training: near 1 is lazy, low is rich; intervals over seeds."
    return Outcome({"nets": rows}, (note,))
