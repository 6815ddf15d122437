"""T5: encoder and decoder with pre-norm blocks, RMS norms, plain or gated MLPs, relative position biases in the
attention scores; the head may scale what it reads."""

from typing import Any

from torch import Tensor

from isotrace.subjects.families.family import RMS_NORM, Family, Stack


def _stack(side: str, attention: tuple[str, ...]) -> Stack:
    """The MLP is the last of a block's sublayers, each behind a norm of its own."""
    mlp = len(attention)
    return Stack(
        layers=f"{side}.block",
        attention=tuple(f"layer.{i}.{name}" for i, name in enumerate(attention)),
        attn_out="layer.0.SelfAttention.o",
        mlp_in=f"layer.{mlp}.DenseReluDense",
        mlp_out=f"layer.{mlp}.DenseReluDense.wo",
        norms=tuple(f"layer.{i}.layer_norm" for i in range(mlp + 1)),
    )


def _logits(model: Any, final: Tensor) -> Tensor:
    scale = model.model_dim**-0.5 if model.config.scale_decoder_outputs else 1.0
    return model.lm_head(final * scale)


T5 = Family(
    model_type="t5",
    base="",
    objective="denoising",
    words=("encoder.embed_tokens", "decoder.embed_tokens"),
    positions=(),
    stacks=(_stack("encoder", ("SelfAttention",)), _stack("decoder", ("SelfAttention", "EncDecAttention"))),
    norms=("encoder.final_layer_norm", "decoder.final_layer_norm"),
    norm=RMS_NORM,
    mask="<extra_id_0>",
    head="lm_head",
    head_decoder="lm_head",
    logits=_logits,
)
