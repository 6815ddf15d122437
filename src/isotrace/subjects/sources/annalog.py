"""ANNalog's checkpoint as a BART: post-norm encoder and decoder with learned positions.

What differs from BART is said in the config: no norm behind the embeddings (`embedding_norm`), scaled embeddings, none
of them shared, and an objective of its own (`translating`). Its vocabulary is a pickle of plain words, read without
running code of it.
"""

import io
import pickle
import re
from typing import Any

import torch
from torch import Tensor

from isotrace.base.errors import SubjectError

HEADS, WORDS = 8, ("<unk>", "<pad>", "<sos>", "<eos>")
ROLES = {"unk": "<unk>", "pad": "<pad>", "bos": "<sos>", "eos": "<eos>", "cls": "<sos>", "sep": "<eos>"}
SHIFT = 2
"""Rows that BART keeps before the first position."""

NAMES = (
    (r"(encoder|decoder)\.tok_embedding", r"model.\1.embed_tokens"),
    (r"(encoder|decoder)\.pos_embedding", r"model.\1.embed_positions"),
    (r"(\w+\.layers\.\d+)\.self_attn_layer_norm", r"model.\1.self_attn_layer_norm"),
    (r"(\w+\.layers\.\d+)\.enc_attn_layer_norm", r"model.\1.encoder_attn_layer_norm"),
    (r"(\w+\.layers\.\d+)\.ff_layer_norm", r"model.\1.final_layer_norm"),
    (r"(\w+\.layers\.\d+)\.self_attention\.fc_([qkv])", r"model.\1.self_attn.\2_proj"),
    (r"(\w+\.layers\.\d+)\.self_attention\.fc_o", r"model.\1.self_attn.out_proj"),
    (r"(\w+\.layers\.\d+)\.encoder_attention\.fc_([qkv])", r"model.\1.encoder_attn.\2_proj"),
    (r"(\w+\.layers\.\d+)\.encoder_attention\.fc_o", r"model.\1.encoder_attn.out_proj"),
    (r"(\w+\.layers\.\d+)\.positionwise_feedforward\.fc_([12])", r"model.\1.fc\2"),
    (r"decoder\.fc_out", "lm_head"),
)


class _Plain(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is no plain data")


def vocabulary(content: bytes) -> list[str]:
    """Words in the order of their ids. Raises UnpicklingError for a pickle of anything but plain data, SubjectError for
    another vocabulary."""
    words = _Plain(io.BytesIO(content)).load()["itos"]
    if tuple(words[: len(WORDS)]) != WORDS:
        raise SubjectError(f"the vocabulary begins with {words[: len(WORDS)]}, not {', '.join(WORDS)}: it is another.")
    return [*words]


def from_annalog(state: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, weights); all sizes are those of the weights."""
    weights: dict[str, Tensor] = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        (renamed,) = (match.expand(new) for old, new in NAMES if (match := re.fullmatch(old, stem)))
        weights[f"{renamed}.{kind}"] = tensor
    words, width = weights["model.encoder.embed_tokens.weight"].shape
    positions = len(weights["model.encoder.embed_positions.weight"])
    weights["final_logits_bias"] = weights.pop("lm_head.bias")[None]
    weights["model.shared.weight"] = weights["model.encoder.embed_tokens.weight"].clone()
    for stack in ("encoder", "decoder"):
        learned = weights[f"model.{stack}.embed_positions.weight"]
        weights[f"model.{stack}.embed_positions.weight"] = torch.cat([torch.zeros(SHIFT, width), learned])
        norm = f"model.{stack}.layernorm_embedding"  # which is there to be loaded, and is not run
        weights |= {f"{norm}.weight": torch.ones(width), f"{norm}.bias": torch.zeros(width)}
    blocks = {match[0] for name in weights if (match := re.match(r"model\.\w+\.layers\.\d+", name))}
    config = {
        "model_type": "bart",
        "translating": True,
        "embedding_norm": False,
        "vocab_size": words,
        "d_model": width,
        "encoder_layers": sum("encoder" in block for block in blocks),
        "decoder_layers": sum("decoder" in block for block in blocks),
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": len(weights["model.encoder.layers.0.fc1.weight"]),
        "decoder_ffn_dim": len(weights["model.decoder.layers.0.fc1.weight"]),
        "activation_function": "relu",
        "scale_embedding": True,
        "max_position_embeddings": positions,
        "is_encoder_decoder": True,
        "tie_word_embeddings": False,
        "bos_token_id": WORDS.index("<sos>"),
        "eos_token_id": WORDS.index("<eos>"),
        "decoder_start_token_id": WORDS.index("<sos>"),
        "forced_eos_token_id": None,
        "dropout": 0.1,
    }
    return config, weights
