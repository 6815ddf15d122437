"""Linear attention over random features, with rotary positions.

    φ(x) = relu(x W),  W the random features that the checkpoint holds
    pattern[q, k] = φ(q)·φ(k) / Σ_k' φ(q)·φ(k')

Summing over keys first, Σ_k φ(k) v(k), is what makes it linear in the number of tokens. Writing the pattern out gives
the same numbers; at the few hundred tokens of a molecule it costs little, and the pattern is there to be seen, set and
frozen. It is never negative and its rows sum to one, as softmax's do.

Katharopoulos et al. 2020 (arXiv:2006.16236); generalised random features: Choromanski et al. 2021 (arXiv:2009.14794);
rotary positions: Su et al. 2021 (arXiv:2104.09864).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers.modeling_utils import PreTrainedModel


class FeatureMap(nn.Module):
    """`[..., d_head]` → `[..., features]`. `weight [d_head, features]` is a buffer, drawn anew all through training and
    part of the checkpoint, which has a `name` for it. It is used as it lies there, so that runs agree."""

    name: ClassVar[str] = "weight"

    def __init__(self, d_head: int, n_features: int) -> None:
        super().__init__()
        self.register_buffer(self.name, torch.empty(d_head, n_features))

    @property
    def drawn(self) -> Tensor:
        return self.get_buffer(self.name)

    @torch.no_grad()
    def reset(self) -> None:
        """Draw columns that are orthogonal in groups of d_head, as long as normal vectors are."""
        d_head, n_features = self.drawn.shape
        groups = []
        for _ in range(-(-n_features // d_head)):
            block = torch.randn(d_head, d_head)
            groups.append(torch.linalg.qr(block)[0] * block.norm(dim=1))
        self.drawn.copy_(torch.cat(groups, 1)[:, :n_features])

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.drawn).relu()


class DrawnFeatures(PreTrainedModel):
    """A model that draws the random features which its checkpoint does not hold."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FeatureMap) and not getattr(module.drawn, "_is_hf_initialized", False):
            module.reset()


def rotated(x: Tensor) -> Tensor:
    """`x [..., tokens, d_head]` turned by its place: dimension i with dimension i + d_head / 2, by place · 10000^(-2i /
    d_head). Angles are those of float32 whatever `x` is in, as the checkpoints were trained with."""
    n_tokens, width = x.shape[-2:]
    rates = 1.0 / 10_000 ** (torch.arange(0, width, 2, device=x.device).float() / width)
    angles = torch.arange(n_tokens, device=x.device).float()[:, None] * rates
    cos, sin = (torch.cat([f(angles)] * 2, -1).to(x.dtype) for f in (torch.cos, torch.sin))
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


class LinearAttention(nn.Module):
    """`[batch, tokens, width]` → what the heads give, side by side; `mask [batch, tokens]` is 0 where a key is padding.
    `pattern` is passed by the pattern `[batch, heads, query, key]` and does nothing. `eps` is the least that a row is
    divided by, so a query without features in common with any key gets zeros."""

    def __init__(self, width: int, n_heads: int, n_features: int, eps: float) -> None:
        super().__init__()
        self.n_heads, self.eps = n_heads, eps
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.feature_map = FeatureMap(width // n_heads, n_features)
        self.pattern = nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (by_head(part(x), self.n_heads) for part in (self.query, self.key, self.value))
        scores = shared(query, key, self.feature_map, mask)
        pattern = self.pattern(scores / scores.sum(-1, keepdim=True).clamp(min=self.eps))
        return side_by_side(pattern @ value)


def shared(query: Tensor, key: Tensor, feature_map: nn.Module, mask: Tensor) -> Tensor:
    """φ(q)·φ(k) `[batch, heads, query, key]` of `[batch, heads, tokens, d_head]`, 0 for keys that are padding."""
    query, key = (feature_map(rotated(part)) for part in (query, key))
    return query @ key.transpose(-1, -2) * mask[:, None, None].to(query.dtype)


def by_head(x: Tensor, n_heads: int) -> Tensor:
    return x.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def side_by_side(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)
