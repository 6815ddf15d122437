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
from isotrace.dictionaries.sparsity.rule import (
    Encoded,
    Rule,
    RuleSettings,
    SparseActivations,
    decoder_norms,
    dense_preactivations,
)


@RULES.named("gated")
class Gated(Rule):
    """`gate_bias` (β) and `gate_scale` (r), both `[n_layers, F]`."""

    needs_k = False

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__(config)
        self.gate_bias = nn.Parameter(torch.zeros(config.n_layers, config.n_features))
        self.gate_scale = nn.Parameter(torch.zeros(config.n_layers, config.n_features))

    def gate(self, layer: int, h: Tensor) -> Tensor:
        """π `[..., F]`."""
        return h * (-self.gate_scale[layer]).exp() + self.gate_bias[layer]

    def encode(self, layer: int, h: Tensor) -> SparseActivations:
        return SparseActivations.of(h.relu() * (self.gate(layer, h) > 0))

    def encode_training(self, dictionary, layer: int, x: Tensor, settings: RuleSettings) -> Encoded:
        h = dense_preactivations(dictionary, layer, x, settings.dtype)
        gate = self.gate(layer, h)
        opened = gate.relu()
        penalty = (opened * decoder_norms(dictionary, layer)).sum(1).mean()
        return Encoded(h.relu() * (gate > 0), h.detach(), penalty, opened)
