"""ProGen2: CodeGen's blocks, whose attention and MLP read the same norm, with queries, values and keys laid out for
eight devices instead of four.

Nijkamp et al. 2023, *Cell Systems* 14, 968. Settings and layers go by the names of the published checkpoints; two
spellings of the settings are published.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import CodeGenConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.codegen.modeling_codegen import CodeGenForCausalLM, CodeGenModel

from isotrace.subjects.dispatch import ATTENTION

GROUPS = 8


class ProGenConfig(CodeGenConfig):
    model_type = "progen"
    attribute_map = CodeGenConfig.attribute_map | {"embed_dim": "n_embd", "vocab_size_emb": "vocab_size"}


def rotated(x: Tensor, places: Tensor, width: int) -> Tensor:
    """`x [batch, heads, tokens, d_head]` with the first `width` dimensions turned, 2i with 2i + 1, by
    place · 10000^(-2i / width); `places [1 or batch, tokens]`. Angles are those of float32 whatever `x` is in."""
    rates = 10_000 ** (-torch.arange(0, width, 2, device=x.device).float() / width)
    angles = places[:, None, :, None].float() * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., :width:2], x[..., 1:width:2]
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), -1).flatten(-2)
    return torch.cat([turned, x[..., width:]], -1)


class ProGenAttention(nn.Module):
    """What `qkv_proj` gives is eight groups side by side, each of queries, then values, then keys of an eighth of the
    heads."""

    def __init__(self, config: ProGenConfig, layer: int) -> None:
        super().__init__()
        width = config.n_embd
        self.layer, self.n_heads, self.d_head = layer, config.n_head, width // config.n_head
        self.rotary_dim = config.rotary_dim or self.d_head
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, hidden_states: Tensor, layer_past: Any = None, attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None, use_cache: bool = False, output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        groups = self.qkv_proj(hidden_states).unflatten(-1, (GROUPS, 3, -1))
        parts = (part.flatten(-2).unflatten(-1, (self.n_heads, self.d_head)) for part in groups.unbind(-2))
        query, value, key = (part.transpose(1, 2) for part in parts)
        query, key = (rotated(part, cast(Tensor, position_ids), self.rotary_dim) for part in (query, key))
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer)
        attend = ALL_ATTENTION_FUNCTIONS[ATTENTION]  # transformers' own ones would do, but for the form of their masks
        output, pattern = attend(self, query, key, value, attention_mask)
        return self.out_proj(output.flatten(2)), pattern


class ProGenModel(CodeGenModel):
    config_class = ProGenConfig

    def __init__(self, config: ProGenConfig) -> None:
        super().__init__(config)
        for layer, block in enumerate(self.h):
            block.attn = ProGenAttention(config, layer)
        self.post_init()


class ProGenForCausalLM(CodeGenForCausalLM):
    config_class = ProGenConfig

    def __init__(self, config: ProGenConfig) -> None:
        super().__init__(config)
        self.transformer = ProGenModel(config)
        self.post_init()
