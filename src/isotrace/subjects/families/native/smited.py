"""SMI-TED: MoLFormer's blocks, and an autoencoder that puts the tokens of a molecule into one vector and back.

Soares et al. 2024 (arXiv:2407.20267). Settings and layers go by the names of `smi-ted` 1.0.0, the authors' package for
the hub. An encoder is trained on masked tokens; the autoencoder, behind it, on giving every token back:

    latent  = lat(norm(gelu(fc1(tokens, 0 where there are none, side by side))))       [batch, 1, n_embd]
    tokens' = rec(norm(gelu(fc1(latent))))                                             [batch, max_len, n_embd]

Each of the two has a language-model head of its own.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput, MaskedLMOutput

from isotrace.subjects.families.native.linear_attention import (
    DrawnFeatures,
    FeatureMap,
    by_head,
    shared,
    side_by_side,
)


class SmiTedConfig(PreTrainedConfig):
    """`intermediate_size` is `n_embd` in all that was published, where it is not said."""

    model_type = "materials.smi-ted"
    attribute_map = {  # noqa: RUF012
        "hidden_size": "n_embd",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "max_len",
    }

    def __init__(
        self, *, vocab_size: int = 2393, n_embd: int = 768, n_layer: int = 12, n_head: int = 12, max_len: int = 202,
        num_feats: int = 32, intermediate_size: int | None = None, initializer_range: float = 0.02,
        pad_token_id: int = 2, tie_word_embeddings: bool = False, **others: Any,
    ) -> None:  # fmt: skip
        self.vocab_size, self.n_embd, self.n_layer, self.n_head = vocab_size, n_embd, n_layer, n_head
        self.max_len, self.num_feats = max_len, num_feats
        self.intermediate_size = n_embd if intermediate_size is None else intermediate_size
        self.initializer_range, self.pad_token_id = initializer_range, pad_token_id
        self.tie_word_embeddings = tie_word_embeddings
        super().__init__(**others)


class _Features(FeatureMap):
    name = "omega"


class _Attention(nn.Module):
    """Linear attention that divides by Σ φ(q)·φ(k) + 1e-6, so the rows of its pattern sum to a little less than one."""

    def __init__(self, config: SmiTedConfig) -> None:
        super().__init__()
        width, self.n_heads = config.n_embd, config.n_head
        self.query_projection, self.key_projection, self.value_projection, self.out_projection = (
            nn.Linear(width, width) for _ in range(4)
        )
        features = _Features(width // self.n_heads, config.num_feats)
        self.inner_attention = nn.ModuleDict({"feature_map": features, "pattern": nn.Identity()})

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        parts = (self.query_projection, self.key_projection, self.value_projection)
        query, key, value = (by_head(part(x), self.n_heads) for part in parts)
        scores = shared(query, key, self.inner_attention["feature_map"], mask)
        pattern = self.inner_attention["pattern"](scores / (scores.sum(-1, keepdim=True) + 1e-6))
        return self.out_projection(side_by_side(pattern @ value))


class _Block(nn.Module):
    def __init__(self, config: SmiTedConfig) -> None:
        super().__init__()
        self.attention = _Attention(config)
        self.linear1 = nn.Linear(config.n_embd, config.intermediate_size)
        self.linear2 = nn.Linear(config.intermediate_size, config.n_embd)
        self.norm1, self.norm2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, mask))
        return self.norm2(x + self.linear2(functional.gelu(self.linear1(x))))


class _Dense(nn.Module):
    """last(norm(gelu(first(x)))); the modules go by the names given."""

    def __init__(self, first: str, last: str, d_in: int, d: int, d_out: int) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.add_module(first, nn.Linear(d_in, d))
        self.ln_f = nn.LayerNorm(d)
        self.add_module(last, nn.Linear(d, d_out, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.last)(self.ln_f(functional.gelu(self.get_submodule(self.first)(x))))


class SmiTedPreTrainedModel(DrawnFeatures):
    config_class = SmiTedConfig
    base_model_prefix = "smi_ted"
    config: SmiTedConfig


class SmiTedModel(SmiTedPreTrainedModel):
    """`hidden_states` of its output: what every block reads, and the final hidden state."""

    def __init__(self, config: SmiTedConfig) -> None:
        super().__init__(config)
        width, words = config.n_embd, config.vocab_size
        layers = nn.ModuleList(_Block(config) for _ in range(config.n_layer))
        self.encoder = nn.ModuleDict({
            "tok_emb": nn.Embedding(words, width),
            "blocks": nn.ModuleDict({"layers": layers, "norm": nn.LayerNorm(width)}),
            "lang_model": _Dense("embed", "head", width, width, words),
        })  # fmt: skip
        whole = config.max_len * width
        autoencoder = {"encoder": _Dense("fc1", "lat", whole, width, width),
                       "decoder": _Dense("fc1", "rec", width, width, whole)}  # fmt: skip
        self.decoder = nn.ModuleDict({
            "autoencoder": nn.ModuleDict(autoencoder),
            "lang_model": _Dense("embed", "head", width, width, words),
        })  # fmt: skip
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.encoder["tok_emb"]

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.encoder["tok_emb"] = value

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        states, blocks = [self.encoder["tok_emb"](input_ids)], cast(nn.ModuleDict, self.encoder["blocks"])
        for block in cast(nn.ModuleList, blocks["layers"]):
            states.append(block(states[-1], mask))
        states[-1] = blocks["norm"](states[-1])
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=cast(Any, tuple(states)))

    def pooled(self, final: Tensor, mask: Tensor) -> Tensor:
        """The latent `[batch, 1, n_embd]` of final hidden states `[batch, tokens, n_embd]`; what `mask` leaves out
        counts as 0, so padding changes nothing."""
        tokens = functional.pad(
            final * mask[..., None].to(final.dtype), (0, 0, 0, self.config.max_len - final.shape[1])
        )
        return cast(nn.ModuleDict, self.decoder["autoencoder"])["encoder"](tokens.flatten(1)[:, None])

    def unpooled(self, latent: Tensor, n_tokens: int) -> Tensor:
        """The first `n_tokens` of the `max_len` tokens that the decoder makes of a latent `[batch, 1, n_embd]`."""
        tokens = cast(nn.ModuleDict, self.decoder["autoencoder"])["decoder"](latent)
        return tokens.view(len(latent), self.config.max_len, -1)[:, :n_tokens]


class SmiTedForMaskedLM(SmiTedPreTrainedModel):
    def __init__(self, config: SmiTedConfig) -> None:
        super().__init__(config)
        self.smi_ted = SmiTedModel(config)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> MaskedLMOutput:
        final = self.smi_ted(input_ids, attention_mask).last_hidden_state
        return MaskedLMOutput(logits=cast(Any, self.smi_ted.encoder["lang_model"](final)))
