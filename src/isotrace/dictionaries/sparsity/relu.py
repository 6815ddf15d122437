"""ReLU with an L1 penalty on activation × decoder norm (Bricken et al. 2023; Conerly et al. 2024)."""

from torch import Tensor

from isotrace.dictionaries.registry import RULES
from isotrace.dictionaries.sparsity.rule import (
    Encoded,
    Rule,
    RuleSettings,
    SparseActivations,
    decoder_norms,
    dense_preactivations,
)


@RULES.named("relu")
class ReLU(Rule):
    needs_k = False

    def encode(self, layer: int, h: Tensor) -> SparseActivations:
        return SparseActivations.of(h.relu())

    def encode_training(self, dictionary, layer: int, x: Tensor, settings: RuleSettings) -> Encoded:
        h = dense_preactivations(dictionary, layer, x, settings.dtype)
        active = h.relu()
        penalty = (active * decoder_norms(dictionary, layer)).sum(1).mean()
        return Encoded(active, h.detach(), penalty)
