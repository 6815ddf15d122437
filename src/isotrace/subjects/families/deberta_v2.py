"""DeBERTa v2 and v3: BERT's blocks with attention that adds terms for relative positions to its scores.

Attention does not go through the registry of attention functions: the dropout behind its softmax sees the pattern.
"""

from dataclasses import replace
from typing import Any

from isotrace.subjects.families.bert import encoder_stack
from isotrace.subjects.families.family import Family, HeadPaths


def refuse(config: Any, has_head: bool) -> str | None:
    if getattr(config, "conv_kernel_size", 0) > 0:
        return "the convolution beside its first block is no linear map (conv_kernel_size)"
    if has_head and not config.legacy:
        return "its head is not that of transformers' default (legacy): set architectures to [DebertaV2Model]"
    return None


DEBERTA_V2 = Family(
    model_type="deberta-v2",
    base="deberta",
    objective="masked",
    words=("deberta.embeddings.word_embeddings",),
    positions=("deberta.embeddings.position_embeddings",),
    stacks=(replace(encoder_stack("deberta"), attention=("attention.self.dropout",)),),
    norms=("deberta.embeddings.LayerNorm",),
    pattern="dropout",
    head="cls",
    head_dense="cls.predictions.transform.dense",
    head_norm="cls.predictions.transform.LayerNorm",
    head_decoder="cls.predictions.decoder",
    sequence=HeadPaths("classifier", "cls", "pooler.dense", "config.pooler_hidden_act"),
    token=HeadPaths("classifier", "token"),
    optional_weights=("position_ids",),
    refuse=refuse,
)
