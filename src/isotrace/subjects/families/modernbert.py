"""ModernBERT: pre-norm blocks without biases, gated MLPs, rotary positions, attention local in most layers."""

from typing import Any

from torch import Tensor

from isotrace.subjects.families.family import Family, HeadPaths, Stack


def logits(model: Any, final: Tensor) -> Tensor:
    return model.decoder(model.head(final))


_HEAD = ("head.dense", "config.classifier_activation", "head.norm")

MODERNBERT = Family(
    model_type="modernbert",
    base="model",
    objective="masked",
    words=("model.embeddings.tok_embeddings",),
    positions=(),
    stacks=(
        Stack(
            layers="model.layers",
            attention=("attn",),
            attn_out="attn.Wo",
            mlp_in="mlp",
            mlp_out="mlp.Wo",
            norms=("attn_norm", "mlp_norm"),
        ),
    ),
    norms=("model.embeddings.norm", "model.final_norm"),
    head="head",
    head_dense="head.dense",
    head_norm="head.norm",
    head_decoder="decoder",
    logits=logits,
    sequence=HeadPaths("classifier", "config.classifier_pooling", *_HEAD),
    token=HeadPaths("classifier", "token", *_HEAD),
)
