"""The tokenizer of MoLFormer and SMI-TED from its words: a regular expression cuts a SMILES into symbols."""

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SYMBOLS = (
    r"\[[^\]]+\]", "Br", "Cl", "[BCNOSPFIbcnosp]", r"\(", r"\)", r"\.", "=", "#", "-", r"\+", r"\\", "/", ":", "~", "@",
    r"\?", ">", r"\*", r"\$", r"%[0-9]{2}", "[0-9]",
)  # fmt: skip
"""Of Schwaller et al. 2018 (Chemical Science 9, 6091): a bracket is one symbol."""
ROLES = {"cls_token": "<bos>", "bos_token": "<bos>", "sep_token": "<eos>", "eos_token": "<eos>", "pad_token": "<pad>",
         "mask_token": "<mask>", "unk_token": "<unk>"}  # fmt: skip

LISTS = ("vocab.txt", "bert_vocab_curated.txt")


def load(folder: Path) -> PreTrainedTokenizerFast:
    """As `tokenizer.json` has it where there is one, else built from the words of a list, one a line, or of
    `vocab.json`. Raises OSError where there is none of them."""
    if (folder / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(folder)
    if lists := [folder / name for name in LISTS if (folder / name).is_file()]:
        return build({word: i for i, word in enumerate(lists[0].read_text(encoding="utf-8").split())})
    return build(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))


def build(index: dict[str, int]) -> PreTrainedTokenizerFast:
    """word → id. What is no symbol is an unknown token, never dropped."""
    tokenizer = Tokenizer(models.WordLevel(index, unk_token=ROLES["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(SYMBOLS)), behavior="isolated")
    first, last = ROLES["cls_token"], ROLES["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, index[first]), (last, index[last])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **ROLES)
