"""MoLFormer: post-norm blocks with rotary positions and linear attention, in classes of isotrace's own."""

from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers.activations import ACT2FN

from isotrace.subjects.families.bert import encoder_stack
from isotrace.subjects.families.family import Family, Native
from isotrace.subjects.families.native import molformer, smiles_tokenizer


def refuse(config: Any, has_head: bool) -> str | None:
    if config.is_decoder:
        return "it is used as a decoder (is_decoder)"
    if config.feature_map_kernel != "relu":
        return f"its feature map is {config.feature_map_kernel!r} (feature_map_kernel), and only relu is written here"
    if config.hidden_act not in ACT2FN:
        return f"transformers has no function {config.hidden_act!r} (hidden_act)"
    width, rest = divmod(config.hidden_size, config.num_attention_heads)
    if rest or width % 2:
        return "its heads are not of one even width (hidden_size, num_attention_heads)"
    return None


def logits(model: Any, final: Tensor) -> Tensor:
    return model.logits(final)


MOLFORMER = Family(
    model_type="molformer",
    base="molformer",
    objective="masked",
    words=("molformer.embeddings.word_embeddings",),
    positions=(),
    stacks=(replace(encoder_stack("molformer"), attention=("attention.self.pattern",)),),
    norms=("molformer.LayerNorm",),
    pattern="dropout",
    head="lm_head",
    head_dense="lm_head.transform.dense",
    head_norm="lm_head.transform.LayerNorm",
    head_decoder="lm_head.decoder",
    logits=logits,
    optional_weights=("inv_freq",),
    refuse=refuse,
    native=Native(
        molformer.MolformerConfig,
        molformer.MolformerModel,
        molformer.MolformerForMaskedLM,
        headless=("MolformerModel", "MolformerForSequenceClassification"),
        tokenizer=smiles_tokenizer.load,
    ),
)
