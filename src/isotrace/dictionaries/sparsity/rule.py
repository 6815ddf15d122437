"""What every sparsity rule offers: the activations of a token at inference, and in training."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from isotrace.base.errors import DictionaryError
from isotrace.dictionaries.config import DictionaryConfig
from isotrace.kernels.topk import topk

if TYPE_CHECKING:
    from isotrace.dictionaries.dictionary import Dictionary


@dataclass(frozen=True)
class SparseActivations:
    """The active features per token: `indices [..., k]` integer, `values [..., k]`; unused slots have value 0."""

    indices: Tensor
    values: Tensor

    def dense(self, n_features: int) -> Tensor:
        """`[..., F]`, zero where inactive."""
        out = self.values.new_zeros(*self.values.shape[:-1], n_features)
        return out.scatter_add(-1, self.indices.long(), self.values)

    def columns(self, units: Tensor, n_features: int) -> Tensor:
        """`[..., units]`: what `dense` has there."""
        place = torch.full((n_features,), len(units), device=self.indices.device)
        place[units] = torch.arange(len(units), device=place.device)
        out = self.values.new_zeros(*self.values.shape[:-1], len(units) + 1)  # the last for all others
        return out.scatter_add_(-1, place[self.indices.long()], self.values)[..., :-1]

    @classmethod
    def of(cls, dense: Tensor) -> "SparseActivations":
        """From dense activations `[..., F]`, none negative; as many slots as the busiest token needs."""
        most = int((dense > 0).sum(-1).max()) if dense.numel() else 0
        values, indices = topk(dense, max(most, 1))
        return cls(indices, values)

    @classmethod
    def stack(cls, layers: "list[SparseActivations]") -> "SparseActivations":
        """`[n_layers, ..., k]` of layers with as many slots as the one that has most."""
        widest = max(layer.values.shape[-1] for layer in layers)
        padded = [[nn.functional.pad(t, (0, widest - t.shape[-1])) for t in (a.indices, a.values)] for a in layers]
        return cls(torch.stack([i for i, _ in padded]), torch.stack([v for _, v in padded]))


@dataclass(frozen=True)
class RuleSettings:
    """Training knobs of the rules. `dtype` is that of the encoder's matrix product; `keep_h` whether
    pre-activations are wanted; `bandwidth` that of the straight-through kernel (jumprelu); `tanh_scale` the c in
    tanh(c · ‖W_dec‖ · a) (jumprelu)."""

    dtype: torch.dtype
    keep_h: bool
    bandwidth: float
    tanh_scale: float


@dataclass(frozen=True)
class Encoded:
    """Activations of one layer in training.

    `active` is sparse, or dense `[tokens, F]`; `h [tokens, F]` pre-activations without gradient where they were
    wanted, for the auxiliary loss; `penalty` the mean sparsity penalty per token, None where the rule has none;
    `gate` dense activations `[tokens, F]` whose reconstruction through fixed decoders is trained too (gated).
    """

    active: SparseActivations | Tensor
    h: Tensor | None
    penalty: Tensor | None = None
    gate: Tensor | None = None


class Rule(nn.Module):
    """A rule holds what it learns beyond encoder and decoder, one row per layer."""

    needs_k: ClassVar[bool]

    def __init__(self, config: DictionaryConfig) -> None:
        super().__init__()
        self.k = config.k or 0

    @classmethod
    def check(cls, config: DictionaryConfig) -> None:
        """Raises DictionaryError for a config this rule cannot have."""
        if cls.needs_k and config.k is None:
            raise DictionaryError(f"{config.activation} needs k: say how many features are active per token.")
        if not cls.needs_k and config.k is not None:
            raise DictionaryError(f"{config.activation} takes no k: leave it out, or use topk or batchtopk.")

    def encode(self, layer: int, h: Tensor) -> SparseActivations:
        """Active features by the inference rule; h `[..., F]`."""
        raise NotImplementedError

    def encode_training(self, dictionary: "Dictionary", layer: int, x: Tensor, settings: RuleSettings) -> Encoded:
        """Differentiable activations of encoder inputs x `[tokens, d_in]` (already standardised)."""
        raise NotImplementedError


class Penalised(Rule):
    """A rule without k, trained on all pre-activations under a penalty."""

    needs_k = False

    def encode_training(self, dictionary: "Dictionary", layer: int, x: Tensor, settings: RuleSettings) -> Encoded:
        product = x.to(settings.dtype) @ dictionary.W_enc[layer].to(settings.dtype)
        h = product.to(x.dtype) + dictionary.b_enc[layer]
        # a penalty on activation × norm cannot be dodged by scaling the decoder up; a zero row has gradient zero
        squares = dictionary.W_dec[layer].square().sum(1)
        norms = torch.where(squares > 0, squares, 1.0).sqrt() * (squares > 0)
        active, charged, gate = self.activate(layer, h, norms, settings)
        return Encoded(active, h.detach(), charged.sum(1).mean(), gate)

    def activate(
        self, layer: int, h: Tensor, norms: Tensor, settings: RuleSettings
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(activations, what each adds to the penalty, `Encoded.gate`), differentiable, from h and all else `[tokens,
        F]` and the norms of decoder rows `[F]`."""
        raise NotImplementedError
