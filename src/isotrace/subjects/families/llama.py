"""Llama: causal pre-norm blocks with RMS norms, gated MLPs, rotary positions, shared key and value heads."""

from isotrace.subjects.families.family import RMS_NORM, Family, HeadPaths, Stack

LLAMA = Family(
    model_type="llama",
    base="model",
    objective="causal",
    words=("model.embed_tokens",),
    positions=(),
    stacks=(
        Stack(
            layers="model.layers",
            attention=("self_attn",),
            attn_out="self_attn.o_proj",
            mlp_in="mlp",
            mlp_out="mlp.down_proj",
            norms=("input_layernorm", "post_attention_layernorm"),
        ),
    ),
    norms=("model.norm",),
    norm=RMS_NORM,
    head="lm_head",
    head_decoder="lm_head",
    sequence=HeadPaths("score", "last"),
    token=HeadPaths("score", "token"),
    optional_weights=("inv_freq",),
)
