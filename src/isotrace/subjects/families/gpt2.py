"""GPT-2: causal pre-norm blocks, learned positions, a linear head."""

from isotrace.subjects.families.family import Family, HeadPaths, Stack

GPT2 = Family(
    model_type="gpt2",
    base="transformer",
    objective="causal",
    words=("transformer.wte",),
    positions=("transformer.wpe",),
    stacks=(
        Stack(
            layers="transformer.h",
            attention=("attn",),
            attn_out="attn.c_proj",
            mlp_in="mlp",
            mlp_out="mlp.c_proj",
            norms=("ln_1", "ln_2"),
        ),
    ),
    norms=("transformer.ln_f",),
    head="lm_head",
    head_decoder="lm_head",
    sequence=HeadPaths("score", "last"),
    token=HeadPaths("classifier", "token"),
    optional_weights=("attn.bias", "attn.masked_bias"),
)
