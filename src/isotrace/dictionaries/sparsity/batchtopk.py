"""BatchTopK (Bussmann et al. 2024): the k · tokens largest positive pre-activations of a batch, so that a hard token
may use more features than an easy one. At inference a learned threshold per layer takes the batch's place."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.registry import RULES
from isotrace.dictionaries.sparsity.rule import Encoded, Rule, RuleSettings, SparseActivations
from isotrace.kernels import sparse_encode

MOMENTUM = 0.99


@RULES.named("batchtopk")
class BatchTopK(Rule):
    """`threshold [n_layers]`: running mean of the smallest activation kept; −1 before the first batch.

    `pooled` brings together what the processes of data-parallel training have, along the first axis: their batches
    are one batch. The identity where one process trains.
    """

    needs_k = True

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__(config)
        self.pooled: Callable[[Tensor], Tensor] = lambda values: values
        self.threshold = nn.Buffer(torch.full((config.n_layers,), -1.0))

    def encode(self, layer: int, h: Tensor) -> SparseActivations:
        return SparseActivations.of(h.relu() * (h > self.threshold[layer]))

    def encode_training(self, dictionary, layer: int, x: Tensor, settings: RuleSettings) -> Encoded:
        # Most tokens need fewer than 4 k slots; should one fill them all, look further down.
        slots, n_features = 4 * self.k, dictionary.config.n_features
        wanted = self.k * int(self.pooled(torch.tensor([len(x)])).sum())
        while True:
            slots = min(slots, n_features)
            values, indices, h = sparse_encode(
                x, dictionary.W_enc[layer], dictionary.b_enc[layer], slots, dtype=settings.dtype, dense=settings.keep_h
            )
            with torch.no_grad():
                positive = largest(self.pooled(largest(values[values > 0], wanted)), wanted)
                if not len(positive):  # nothing to keep, and nothing to learn a threshold from
                    return Encoded(SparseActivations(indices, values), h)
                cut = positive.min()
                kept = values >= cut
            if slots == n_features or not bool(self.pooled((kept.sum(1).max() >= slots).int()[None]).any()):
                break
            slots *= 2
        with torch.no_grad():
            before = self.threshold[layer]
            self.threshold[layer] = torch.where(before < 0, cut, MOMENTUM * before + (1 - MOMENTUM) * cut)
        return Encoded(SparseActivations(indices, values * kept), h)


def largest(values: Tensor, n: int) -> Tensor:
    """The n largest of `values [m]`, all where there are fewer."""
    return values.topk(n, sorted=False).values if len(values) > n else values
