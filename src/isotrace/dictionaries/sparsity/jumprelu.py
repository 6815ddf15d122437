"""JumpReLU (Rajamanoharan et al. 2024b) with a tanh penalty: a = ReLU(h) · [h > θ_f].

The step has no gradient; the threshold's is estimated by a rectangle kernel of width ε (their eq. 11):
∂a/∂θ ≈ −(θ / ε) · [|h − θ| < ε / 2]. The penalty Σ_f tanh(c · ‖W_dec,f‖ · a_f) counts active features smoothly.
"""

import torch
from torch import Tensor, nn

from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.registry import RULES
from isotrace.dictionaries.sparsity.rule import Penalised, RuleSettings, SparseActivations

INITIAL = 0.5  # pre-activations of normalised inputs and unit-norm encoders have unit variance


class Jump(torch.autograd.Function):
    """(h `[tokens, F]`, θ `[F]`, ε) → a `[tokens, F]`."""

    @staticmethod
    def forward(ctx, h: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(h, threshold)
        ctx.bandwidth = bandwidth
        return h.relu() * (h > threshold)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (h, threshold), (grad,) = ctx.saved_tensors, grads
        near = (h - threshold).abs() < ctx.bandwidth / 2
        return grad * ((h > threshold) & (h > 0)), -(threshold / ctx.bandwidth) * (grad * near).sum(0), None


@RULES.named("jumprelu")
class JumpReLU(Penalised):
    """`threshold [n_layers, F]`."""

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__(config)
        self.threshold = nn.Parameter(torch.full((config.n_layers, config.n_features), INITIAL))

    def encode(self, layer: int, h: Tensor) -> SparseActivations:
        return SparseActivations.of(h.relu() * (h > self.threshold[layer]))

    def activate(self, layer: int, h: Tensor, norms: Tensor, settings: RuleSettings) -> tuple[Tensor, Tensor, None]:
        active = Jump.apply(h, self.threshold[layer], settings.bandwidth)
        return active, (settings.tanh_scale * norms * active).tanh(), None
