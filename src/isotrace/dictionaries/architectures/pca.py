"""Principal components of a hookpoint as features, one for either sign of each: a basis that nothing is trained for.

    y − c ≈ Σ a_i v_i − Σ a'_i v_i      v_i the eigenvectors of the covariance, the largest first, a = ReLU(±v·(y − c))

Of the k largest projections of a token the sum is its best approximation by k of these components; exact from k = d on.
Features beyond twice the width are never active.
"""

from typing import ClassVar

import torch
from torch import Tensor

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.architectures.sae import SparseAutoencoder
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.dictionaries.registry import ARCHITECTURES


@ARCHITECTURES.named("pca")
class PrincipalComponents(SparseAutoencoder):
    fitted: ClassVar = 20_000

    @classmethod
    def check(cls, config: DictionaryConfig) -> None:
        super().check(config)
        if config.activation not in ("topk", "relu") or config.prefixes or config.token_normalization != "none":
            raise DictionaryError("principal components are fitted: leave the rule at topk or relu, without prefixes.")

    @torch.no_grad()
    def fit(self, tokens: Tensor, seed: int) -> None:
        """From tokens `[n_layers, tokens, d]`; nothing is drawn."""
        for layer, y in enumerate(tokens):
            self.place(layer, y)

    @torch.no_grad()
    def place(self, layer: int, y: Tensor) -> None:
        """Take the components of y `[tokens, d]`."""
        mean = y.double().mean(0)
        _, vectors = torch.linalg.eigh((y - mean).T @ (y - mean))
        kept = vectors.flip(1)[:, : self.config.n_features // 2]
        both = torch.cat([kept, -kept], 1)
        n = both.shape[1]
        for weight in (self.W_enc[layer], self.W_dec[layer], self.b_enc[layer]):
            weight.zero_()
        self.W_enc[layer][:, :n] = both.to(self.W_enc[layer])
        self.b_enc[layer][:n] = (-mean @ both).to(self.b_enc[layer])
        self.W_dec[layer][:n] = both.T.to(self.W_dec[layer])
        self.b_dec[layer].copy_(mean)
