"""TopK (Gao et al. 2024): the k largest positive pre-activations of every token."""

from torch import Tensor

from isotrace.dictionaries.registry import RULES
from isotrace.dictionaries.sparsity.rule import Encoded, Rule, RuleSettings, SparseActivations
from isotrace.kernels import sparse_encode
from isotrace.kernels.topk import topk


@RULES.named("topk")
class TopK(Rule):
    needs_k = True

    def encode(self, layer: int, h: Tensor) -> SparseActivations:
        values, indices = topk(h, self.k)
        return SparseActivations(indices, values.relu())

    def encode_training(self, dictionary, layer: int, x: Tensor, settings: RuleSettings) -> Encoded:
        values, indices, h = sparse_encode(
            x, dictionary.W_enc[layer], dictionary.b_enc[layer], self.k, dtype=settings.dtype, dense=settings.keep_h
        )
        return Encoded(SparseActivations(indices, values), h)
