"""ReLU with an L1 penalty on activation × decoder norm (Bricken et al. 2023; Conerly et al. 2024)."""

from torch import Tensor

from isotrace.dictionaries.registry import RULES
from isotrace.dictionaries.sparsity.rule import Penalised, RuleSettings, SparseActivations


@RULES.named("relu")
class ReLU(Penalised):
    def encode(self, layer: int, h: Tensor) -> SparseActivations:
        return SparseActivations.of(h.relu())

    def activate(self, layer: int, h: Tensor, norms: Tensor, settings: RuleSettings) -> tuple[Tensor, Tensor, None]:
        active = h.relu()
        return active, active * norms, None
