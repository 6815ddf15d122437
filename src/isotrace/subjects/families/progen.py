"""ProGen2: causal blocks whose attention and MLP read the same norm, in classes of isotrace's own."""

from typing import Any

from transformers.activations import ACT2FN

from isotrace.subjects.families.family import Family, Native, Stack
from isotrace.subjects.families.native import progen, progen_tokenizer


def refuse(config: Any, has_head: bool) -> str | None:
    width, rest = divmod(config.n_embd, config.n_head)
    if rest or config.n_head % progen.GROUPS:
        return f"its {config.n_head} heads (n_head) are not of one width, or no multiple of {progen.GROUPS}"
    if config.rotary_dim is not None and (config.rotary_dim % 2 or not 0 < config.rotary_dim <= width):
        return f"{config.rotary_dim} dimensions turn (rotary_dim), which must be even and at most the {width} of a head"
    if config.activation_function not in ACT2FN:
        return f"transformers has no function {config.activation_function!r} (activation_function)"
    written = getattr(config, "vocab_size_lm_head", config.vocab_size)
    if written != config.vocab_size:
        return f"it writes {written} tokens (vocab_size_lm_head) and reads {config.vocab_size} (vocab_size_emb)"
    return None


PROGEN = Family(
    model_type="progen",
    base="transformer",
    objective="causal",
    words=("transformer.wte",),
    positions=(),
    stacks=(
        Stack(
            layers="transformer.h",
            attention=("attn",),
            attn_out="attn.out_proj",
            mlp_in="mlp",
            mlp_out="mlp.fc_out",
            norms=("ln_1",),
        ),
    ),
    norms=("transformer.ln_f",),
    head="lm_head",
    head_decoder="lm_head",
    refuse=refuse,
    native=Native(
        progen.ProGenConfig,
        progen.ProGenModel,
        progen.ProGenForCausalLM,
        headless=("ProGenModel",),
        tokenizer=progen_tokenizer.load,
    ),
)
