"""MoLFormer: BERT's post-norm blocks with linear attention and rotary positions, and a norm behind them.

Ross et al. 2022, *Nature Machine Intelligence* 4, 1256. Settings and layers go by the names of the checkpoints in the
layout of the hub (`ibm/MoLFormer-XL-both-10pct`). There is no dropout: nothing is trained here.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from isotrace.subjects.families.native.linear_attention import DrawnFeatures, LinearAttention


class MolformerConfig(PreTrainedConfig):
    """The settings that say what is computed, with the defaults that the published config leaves out."""

    model_type = "molformer"

    def __init__(
        self, *, vocab_size: int = 2362, hidden_size: int = 768, num_hidden_layers: int = 12,
        num_attention_heads: int = 12, intermediate_size: int = 768, hidden_act: str = "gelu",
        max_position_embeddings: int = 202, initializer_range: float = 0.02, layer_norm_eps: float = 1e-12,
        linear_attention_eps: float = 1e-6, num_random_features: int = 32, feature_map_kernel: str = "relu",
        pad_token_id: int = 2, tie_word_embeddings: bool = True, is_decoder: bool = False, **others: Any,
    ) -> None:  # fmt: skip
        self.vocab_size, self.hidden_size, self.num_hidden_layers = vocab_size, hidden_size, num_hidden_layers
        self.num_attention_heads, self.intermediate_size = num_attention_heads, intermediate_size
        self.hidden_act, self.max_position_embeddings = hidden_act, max_position_embeddings
        self.initializer_range, self.layer_norm_eps = initializer_range, layer_norm_eps
        self.linear_attention_eps, self.num_random_features = linear_attention_eps, num_random_features
        self.feature_map_kernel, self.pad_token_id = feature_map_kernel, pad_token_id
        self.tie_word_embeddings, self.is_decoder = tie_word_embeddings, is_decoder
        super().__init__(**others)


class _Added(nn.Module):
    """A linear map whose result is added to the stream, and the norm behind the sum."""

    def __init__(self, width: int, config: MolformerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor, stream: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + stream)


class _Dense(nn.Module):
    """A linear map, its pointwise function and, in the head, a norm."""

    def __init__(self, width: int, config: MolformerConfig, *, norm: bool = False) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, width)
        self.function = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.function(self.dense(x))
        return x if self.LayerNorm is None else self.LayerNorm(x)


class _Block(nn.Module):
    def __init__(self, config: MolformerConfig) -> None:
        super().__init__()
        width = config.hidden_size
        attention = LinearAttention(
            width, config.num_attention_heads, config.num_random_features, config.linear_attention_eps
        )
        self.attention = nn.ModuleDict({"self": attention, "output": _Added(width, config)})
        self.intermediate = _Dense(config.intermediate_size, config)
        self.output = _Added(config.intermediate_size, config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)
        return self.output(self.intermediate(x), x)


class MolformerPreTrainedModel(DrawnFeatures):
    config_class = MolformerConfig
    base_model_prefix = "molformer"
    config: MolformerConfig


class MolformerModel(MolformerPreTrainedModel):
    """`hidden_states` of its output: what every block reads, and the final hidden state."""

    def __init__(self, config: MolformerConfig) -> None:
        super().__init__(config)
        words = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.embeddings = nn.ModuleDict({"word_embeddings": words})
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(_Block(config) for _ in range(config.num_hidden_layers))})
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings["word_embeddings"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embeddings["word_embeddings"] = value

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states = [self.embeddings["word_embeddings"](input_ids)]
        for block in cast(nn.ModuleList, self.encoder["layer"]):
            states.append(block(states[-1], mask))
        states[-1] = self.LayerNorm(states[-1])
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=cast(Any, tuple(states)))


class MolformerForMaskedLM(MolformerPreTrainedModel):
    _tied_weights_keys = {"lm_head.decoder.weight": "molformer.embeddings.word_embeddings.weight"}  # noqa: RUF012

    def __init__(self, config: MolformerConfig) -> None:
        super().__init__(config)
        self.molformer = MolformerModel(config)
        decoder = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head = nn.ModuleDict({"transform": _Dense(config.hidden_size, config, norm=True), "decoder": decoder})
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head["decoder"]

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head["decoder"] = new_embeddings

    def logits(self, final: Tensor) -> Tensor:
        """`[..., vocabulary]` of final hidden states `[..., hidden_size]`."""
        return self.lm_head["decoder"](self.lm_head["transform"](final))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> MaskedLMOutput:
        final = self.molformer(input_ids, attention_mask).last_hidden_state
        return MaskedLMOutput(logits=cast(Any, self.logits(final)))
