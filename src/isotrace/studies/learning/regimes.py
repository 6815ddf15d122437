"""Rich or lazy: how far training moved a model from where it began.

effective rank          exp(−Σ p ln p), p = σ / Σσ of a weight's singular values (Roy and Vetterli 2007)
weight movement         ‖W − W₀‖ / ‖W₀‖
alignment               ⟨K₀, K⟩ / (‖K₀‖ ‖K‖) of the kernels of inputs before and after: of representations K = HHᵀ, or
                        the tangent kernel K = JJᵀ with J the gradients of the output; also with both centred

Low alignment = rich: what the model computes with is new. High = lazy: it stayed a linear model in its first gradients.
The tangent kernel is exact, one weight after the other, and not projected: 64 inputs need no more.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from isotrace.base.errors import InputError


def effective_rank(weight: Tensor) -> float:
    """Of `weight [a, b]`, between 1 and min(a, b); NaN for one of zeros."""
    sigma = torch.linalg.svdvals(weight.double())
    p = sigma / sigma.sum()
    return float((-torch.special.xlogy(p, p).sum()).exp())


def weight_movement(before: Tensor, after: Tensor) -> float:
    """NaN or infinite for weights that were zero."""
    return float((after.double() - before.double()).norm() / before.double().norm())


def kernel(rows: Tensor) -> Tensor:
    """HHᵀ `[inputs, inputs]` float64 of `rows [inputs, d]`."""
    return rows.double() @ rows.double().T


def centred(k: Tensor) -> Tensor:
    """That of rows less their mean."""
    return k - k.mean(0, keepdim=True) - k.mean(1, keepdim=True) + k.mean()


def alignment(before: Tensor, after: Tensor) -> float:
    """Of two kernels `[inputs, inputs]`; NaN where one is zero. Raises InputError for kernels of other inputs."""
    if before.shape != after.shape:
        raise InputError(f"kernels of {len(before)} and {len(after)} inputs: give those of the same inputs.")
    return float((before * after).sum() / (before.norm() * after.norm()))


def tangent_kernel(model: nn.Module, output: Callable[[int], Tensor], n: int) -> Tensor:
    """JJᵀ `[n, n]` float64 with J the gradients of the scalar `output(i)` of input i in all weights of `model` that
    have one."""
    weights = [w for w in model.parameters() if w.requires_grad]
    rows: list[list[Tensor]] = []
    for i in range(n):
        found = torch.autograd.grad(output(i), weights, allow_unused=True)
        rows.append([torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)])
    parts = (kernel(torch.stack([row[j].flatten() for row in rows])) for j in range(len(weights)))
    return sum(parts, torch.zeros(n, n, dtype=torch.float64))
