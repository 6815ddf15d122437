"""Gated (Rajamanoharan et al. 2024a): one path says whether a feature is active, the other how much.

    π_f = h_f e^{−r_f} + β_f        gate, sharing the encoder's direction
    a_f = ReLU(h_f) · [π_f > 0]

The paper's W_gate, b_gate, b_mag are W_enc e^{−r}, β + b_enc e^{−r} and b_enc here: W_enc is the magnitude path, so
that an active feature is linear in the input through W_enc as under every other rule. The gate has no gradient
through a; it learns from ReLU(π): an L1 penalty, and its own reconstruction through fixed decoders (their eq. 8).
"""

import torch
from torch import Tensor, nn

from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.registry import RULES
from isotrace.dictionaries.sparsity.rule import Penalised, RuleSettings, SparseActivations


@RULES.named("gated")
class Gated(Penalised):
    """`gate_bias` (β) and `gate_scale` (r), both `[n_layers, F]`."""

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__(config)
        self.gate_bias = nn.Parameter(torch.zeros(config.n_layers, config.n_features))
        self.gate_scale = nn.Parameter(torch.zeros(config.n_layers, config.n_features))

    def gate(self, layer: int, h: Tensor) -> Tensor:
        """π `[..., F]`."""
        return h * (-self.gate_scale[layer]).exp() + self.gate_bias[layer]

    def encode(self, layer: int, h: Tensor) -> SparseActivations:
        return SparseActivations.of(h.relu() * (self.gate(layer, h) > 0))

    def activate(self, layer: int, h: Tensor, norms: Tensor, settings: RuleSettings) -> tuple[Tensor, Tensor, Tensor]:
        gate = self.gate(layer, h)
        opened = gate.relu()
        return h.relu() * (gate > 0), opened * norms, opened
