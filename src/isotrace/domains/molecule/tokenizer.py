"""Builds the atom-level SMILES tokenizer of the bundled subject, as a standard `tokenizers` pipeline.

Frequent bracket atoms (`[nH]`, `[C@@H]`, `[N+]`) are one token. Every other bracket is spelled out
(`[`, isotope digits, element, chirality, `H`, charge, `]`), so that isotopes, charges and rare elements
never fall out of the vocabulary; the domain maps all pieces of one bracket to the same atom.
"""

import re
from collections import Counter
from collections.abc import Iterable

from rdkit import Chem
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<cls>", "<pad>", "<eos>", "<unk>", "<mask>")
_TABLE = Chem.GetPeriodicTable()
ELEMENTS = tuple(_TABLE.GetElementSymbol(z) for z in range(1, 119))
ORGANIC = ("C", "N", "O", "S", "P", "F", "Cl", "Br", "I", "B", "c", "n", "o", "s", "p", "b", "*")
SYNTAX = ("(", ")", ".", "-", "=", "#", "$", ":", "/", "\\", "~", "[", "]", "@", "@@", "+", "H")
RINGS = tuple("0123456789") + tuple(f"%{n}" for n in range(10, 100))
AROMATIC = ("se", "as", "te", "si")


def build_tokenizer(corpus: Iterable[str], min_count: int, max_length: int) -> PreTrainedTokenizerFast:
    """Tokenizer whose whole-bracket tokens are those seen at least `min_count` times in `corpus`.

    `max_length` counts `<cls>` and `<eos>`.
    """
    counts = Counter(b for smiles in corpus for b in re.findall(r"\[[^\[\]]+\]", smiles))
    brackets = sorted((b for b, n in counts.items() if n >= min_count), key=lambda b: (-counts[b], b))
    names = dict.fromkeys((*SPECIAL, *ORGANIC, *SYNTAX, *RINGS, *brackets, *AROMATIC, *ELEMENTS))
    two_letter = "|".join([e for e in ELEMENTS if len(e) == 2] + list(AROMATIC))
    pattern = "|".join(
        [re.escape(b) for b in sorted(brackets, key=len, reverse=True)]
        + [rf"(?<=\[|\[\d|\[\d\d|\[\d\d\d)(?:{two_letter})", r"%\d\d", "Br", "Cl", "@@", "."]
    )
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<cls> $A <eos>", special_tokens=[("<cls>", 0), ("<eos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token="<cls>",
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
