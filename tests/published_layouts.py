"""Tiny random subjects whose files are laid out as published checkpoints are, which is not how we would save them."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
ESM_WORDS = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"LAGVESIKRDTPNQFYMHCWXUBZO"]


def written(folder: Path, **files: object) -> Path:
    """`files`: stem → text of a .txt, or data of a .json."""
    for name, content in files.items():
        suffix = "txt" if isinstance(content, str) else "json"
        (folder / f"{name}.{suffix}").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def esm2(folder: Path, **changes: object) -> Path:
    """vocab.txt, special_tokens_map.json and tokenizer_config.json, no tokenizer.json."""
    given = {"token_dropout": True, "position_embedding_type": "rotary", "emb_layer_norm_before": False} | changes
    config = transformers.EsmConfig(
        vocab_size=len(ESM_WORDS), pad_token_id=1, mask_token_id=32, max_position_embeddings=1026, **SIZES, **given
    )
    transformers.EsmForMaskedLM(config).save_pretrained(folder)
    special = {f"{role}_token": f"<{role}>" for role in ("cls", "eos", "mask", "pad", "unk")}
    settings = {"tokenizer_class": "EsmTokenizer", "clean_up_tokenization_spaces": True}
    return written(folder, vocab="\n".join(ESM_WORDS), special_tokens_map=special, tokenizer_config=settings)


def esm1b(folder: Path) -> Path:
    """Learned positions and a norm behind the embeddings."""
    return esm2(folder, position_embedding_type="absolute", emb_layer_norm_before=True)


def protbert(folder: Path) -> Path:
    """A word is a residue, so residues stand between spaces; weights are a pickle."""
    config = transformers.BertConfig(vocab_size=len(BERT_WORDS), max_position_embeddings=512, **SIZES)
    model = transformers.BertForMaskedLM(config)
    model.config.architectures = ["BertForMaskedLM"]
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return written(folder, vocab="\n".join(BERT_WORDS) + "\n", tokenizer_config={"do_lower_case": False})


def chemberta(folder: Path) -> Path:
    """A byte-level BPE of SMILES: vocab.json and merges.txt."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *map(chr, range(33, 127)), "CC", "(=", "Cl", "Br", "cc", "ccc"]
    config = transformers.RobertaConfig(
        vocab_size=len(words), type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2,
        max_position_embeddings=130, **SIZES,
    )  # fmt: skip
    transformers.RobertaForMaskedLM(config).save_pretrained(folder)
    (folder / "merges.txt").write_text("#version: 0.2\nC C\n( =\nC l\nB r\nc c\ncc c\n")
    settings = {"tokenizer_class": "RobertaTokenizer"}
    return written(folder, vocab={word: i for i, word in enumerate(words)}, tokenizer_config=settings)


def prott5(folder: Path) -> Path:
    """A sentencepiece model of residues between spaces, and no tokenizer.json."""
    import sentencepiece

    letters = "ALGVSREDTIPKFQNYMHWCX"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(letters)] * 50), model_writer=(model := Written()), model_type="word",
        vocab_size=len(letters) + 3, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "spiece.model").write_bytes(model.content)
    config = transformers.T5Config(
        vocab_size=len(letters) + 3 + 100, d_model=16, num_layers=2, num_heads=2, d_kv=8, d_ff=24,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    settings = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": 512}
    return written(folder, tokenizer_config=settings)


class Written:
    """What sentencepiece writes its model to."""

    content = b""

    def write(self, content: bytes) -> None:
        self.content += content


LAYOUTS: dict[str, Callable[[Path], Path]] = {f.__name__: f for f in (esm2, esm1b, protbert, chemberta, prott5)}


def make(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    return LAYOUTS[name](folder)
