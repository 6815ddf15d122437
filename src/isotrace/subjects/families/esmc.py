"""ESM-C (ESM Cambrian): pre-norm blocks without biases, gated MLPs, rotary positions, norms on queries and keys.

Every block adds what attention and MLP give divided by √(layers / 36), behind the hookpoints `attn_out` and `mlp_out`:
a constant, so the stream stays affine in both. The norms on queries and keys are seen by attention patterns alone.
"""

from isotrace.subjects.families.family import Family, HeadPaths, Stack

ESMC = Family(
    model_type="esmc",
    base="esmc",
    objective="masked",
    words=("esmc.embed_tokens",),
    positions=(),
    stacks=(
        Stack(
            layers="esmc.layers",
            attention=("self_attn",),
            attn_out="self_attn.o_proj",
            mlp_in="mlp",
            mlp_out="mlp.down_proj",
            norms=("input_layernorm", "post_attention_layernorm"),
        ),
    ),
    norms=("esmc.norm",),
    head="lm_head",
    head_dense="lm_head.dense",
    head_norm="lm_head.layer_norm",
    head_decoder="lm_head.decoder",
    sequence=HeadPaths("classifier.out_proj", "cls", "classifier.dense", "tanh"),
    token=HeadPaths("score", "token"),
    optional_weights=("inv_freq",),
)
