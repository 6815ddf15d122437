"""The tokenizer of ProGen2: a letter a token, between `1`, where a chain begins, and `2`, where it ends."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = ("<|pad|>", "<|bos|>", "<|eos|>", "1", "2", *"ABCDEFGHIKLMNOPQRSTUVWXYZ")
UNUSED = ["<|bos|>", "<|eos|>"]
ROLES = {"pad_token": "<|pad|>", "bos_token": "1", "eos_token": "2"}


def load(folder: Path) -> PreTrainedTokenizerFast:
    """Of `tokenizer.json`, where there is one, else of its words, which are the same in all published models.

    A chain is given its `1` and `2`, with which the models were trained and which the published file leaves to the
    user; a file that puts tokens of its own around a text is taken as it is.
    """
    file = folder / "tokenizer.json"
    tokenizer = Tokenizer.from_file(str(file)) if file.is_file() else of_words()
    if tokenizer.num_special_tokens_to_add(is_pair=False):
        return PreTrainedTokenizerFast.from_pretrained(folder)
    first, last = ROLES["bos_token"], ROLES["eos_token"]
    pairs = [(word, tokenizer.token_to_id(word)) for word in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=pairs)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, additional_special_tokens=UNUSED, **ROLES
    )


def of_words() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(WORDS)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer
