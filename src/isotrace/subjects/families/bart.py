"""BART: encoder and decoder with post-norm blocks, learned positions, a linear head with a bias of its own."""

from typing import Any

from torch import Tensor, nn

from isotrace.subjects.families.family import Family, Stack


def logits(model: Any, final: Tensor) -> Tensor:
    return model.lm_head(final) + model.final_logits_bias[0]


def without_embedding_norm(model: Any) -> None:
    """Where the config says so: nothing stands in place of the norm behind the embeddings."""
    if not getattr(model.config, "embedding_norm", True):
        base = getattr(model, "model", model)
        base.encoder.layernorm_embedding, base.decoder.layernorm_embedding = nn.Identity(), nn.Identity()


BART = Family(
    model_type="bart",
    base="model",
    objective="denoising",
    words=("model.encoder.embed_tokens", "model.decoder.embed_tokens"),
    positions=("model.encoder.embed_positions", "model.decoder.embed_positions"),
    stacks=(
        Stack(
            layers="model.encoder.layers",
            attention=("self_attn",),
            attn_out="self_attn.out_proj",
            mlp_in="fc1",
            mlp_out="fc2",
            norms=("self_attn_layer_norm", "final_layer_norm"),
        ),
        Stack(
            layers="model.decoder.layers",
            attention=("self_attn", "encoder_attn"),
            attn_out="self_attn.out_proj",
            mlp_in="fc1",
            mlp_out="fc2",
            norms=("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
        ),
    ),
    norms=("model.encoder.layernorm_embedding", "model.decoder.layernorm_embedding"),
    head="lm_head",
    head_decoder="lm_head",
    logits=logits,
    optional_weights=("final_logits_bias",),
    prepare=without_embedding_norm,
)
