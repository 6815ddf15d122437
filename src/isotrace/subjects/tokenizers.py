"""The tokenizer of a checkpoint, as one that says which characters of the text every token covers.

transformers runs most tokenizers by a library that keeps offsets. That of ESM-2 and ESM-1b (`vocab.txt`, one letter a
token) it runs in Python, without offsets: it is built again from its words, and compared with the original.
"""

import re
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from isotrace.base.errors import SubjectError
from isotrace.subjects.families import Native

SENTENCEPIECE = ("spiece.model", "spm.model", "tokenizer.model", "sentencepiece.bpe.model")
PACKAGES = {"sentencepiece": "sentencepiece", "protobuf": "google.protobuf"}  # what is installed → its module
Spans = tuple[tuple[int, int], ...]
RESIDUES = "LAGVSERTIDPKQNFYMHCW"


def load_tokenizer(source: str, folder: Path, native: Native | None = None) -> PreTrainedTokenizerFast:
    """`native`: the classes of a family that transformers lacks. Raises SubjectError for a tokenizer that cannot say
    where its tokens stand, or that needs a missing package; transformers raises many kinds of errors for damaged
    files."""
    if not (folder / "tokenizer.json").is_file() and any((folder / name).is_file() for name in SENTENCEPIECE):
        missing = [name for name, module in PACKAGES.items() if not _installed(module)]
        if missing:
            raise SubjectError(
                f"the tokenizer of {source} is a sentencepiece model, and the packages it needs are missing, "
                f"{' and '.join(missing)} here: pip install 'isotrace[sentencepiece]'."
            )
    own = None if native is None else native.tokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False) if own is None else own(folder)
    if not isinstance(tokenizer.model_max_length, int | float) or tokenizer.model_max_length < 1:
        limit = tokenizer.model_max_length
        raise SubjectError(f"model_max_length of the tokenizer of {source} is {limit!r}: give a number of tokens.")
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        return tokenizer
    rebuilt = of_words(tokenizer)
    if any(tokenizer(text)["input_ids"] != rebuilt(text)["input_ids"] for text in _samples(tokenizer)):
        raise SubjectError(
            f"the tokenizer of {source}, a {type(tokenizer).__name__}, runs in Python, keeps no offsets and does more "
            "than look up words: save it as tokenizer.json (docs/bring-your-own-model.md)."
        )
    return rebuilt


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the parent package
        return False


def of_words(slow: Any) -> PreTrainedTokenizerFast:
    """The tokenizer that takes the longest word of the vocabulary of `slow` at every place, and calls what lies
    between words, up to the next blank, unknown."""
    index, roles = slow.get_vocab(), slow.special_tokens_map
    words = "|".join(re.escape(word) for word in sorted(index, key=len, reverse=True))
    tokenizer = Tokenizer(models.WordLevel(index, unk_token=roles["unk_token"]))
    split = pre_tokenizers.Split(Regex(words), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.WhitespaceSplit()])
    unknown = slow.unk_token_id
    before, after = _around(slow.build_inputs_with_special_tokens([unknown]), unknown)
    names = {i: slow.convert_ids_to_tokens(i) for i in (*before, *after)}
    template = [*(names[i] for i in before), "$A", *(names[i] for i in after)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join(template), special_tokens=[(name, i) for i, name in names.items()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=slow.model_max_length,
        clean_up_tokenization_spaces=False,
        **{role: token for role, token in roles.items() if isinstance(token, str)},
    )


def _around(ids: list[int], marker: int) -> tuple[list[int], list[int]]:
    place = ids.index(marker)
    return ids[:place], ids[place + 1 :]


def _samples(slow: Any) -> Iterator[str]:
    """Every word alone, all of them with and without blanks, random runs of them, and what is no word."""
    words = [word for word in slow.get_vocab() if word not in slow.all_special_tokens]
    yield from (*words, "".join(words), " ".join(words), "", "é", f"{words[0]}é?{words[-1]} ~ {words[0]}")
    rng = np.random.default_rng(0)
    yield from ("".join(rng.choice(words, size=30)) for _ in range(100))


def wants_spaces(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Whether residues must stand between blanks (ProtBert, ProtT5): a chain as written holds unknown words, and with
    blanks it is one known token a residue."""

    def known(text: str) -> bool:
        found = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return len(found) == len(RESIDUES) and tokenizer.unk_token_id not in found

    return not known(RESIDUES) and known(" ".join(RESIDUES))


def spaced(text: str) -> tuple[str, list[int]]:
    """(the letters of `text` between single blanks, where each of them stands in `text`)."""
    places = [i for i, letter in enumerate(text) if not letter.isspace()]
    return " ".join(text[i] for i in places), places


def unspaced(offsets: Iterable[tuple[int, int]], places: list[int]) -> Spans:
    """Spans in the text that `spaced` made, as spans in the text it was given; every other letter is a blank."""
    spans = []
    for start, end in offsets:
        first, last = -(-start // 2), (end - 1) // 2
        spans.append((places[first], places[last] + 1) if start < end and first <= last else (0, 0))
    return tuple(spans)


def fault(
    text: str, ids: list[int], spans: Spans, tokenizer: PreTrainedTokenizerFast, case_matters: bool
) -> str | None:
    """Why the tokens, which cover `spans` of `text`, do not write it; None: they do, but for blanks.

    A tokenizer of bytes without unknown token leaves out characters it does not know, and one made for prose may
    write capitals small.
    """
    covered = {i for start, end in spans for i in range(start, end)}
    uncovered = "".join(letter for i, letter in enumerate(text) if i not in covered and not letter.isspace())
    if uncovered:
        tokens = [*tokenizer.convert_ids_to_tokens([i for i, (a, b) in zip(ids, spans, strict=True) if a < b])]
        letters = ", ".join(dict.fromkeys(map(repr, _left_out(text, tokens) or uncovered)))
        return f"its tokenizer leaves out {letters} of {text[:80]!r}: rewrite or drop it."
    normalizer = tokenizer.backend_tokenizer.normalizer
    if case_matters and normalizer is not None:
        read = "".join(normalizer.normalize_str(text).replace("▁", " ").split())
        if read != "".join(text.split()):
            return f"its tokenizer reads {text[:80]!r} as {read[:80]!r}: it was made for other texts."
    return None


def way_out(unknown: list[str], tokenizer: PreTrainedTokenizerFast) -> str:
    """What to do about a text with the `unknown` pieces."""
    if isinstance(tokenizer.backend_tokenizer.model, models.WordPiece) and any(len(piece) > 4 for piece in unknown):
        return (
            f"rewrite or drop it, or, where all are refused, give the folder the tokenizer.json of its training: a "
            f"{type(tokenizer).__name__} takes what stands between blanks for words"
        )
    return "rewrite or drop it"


def _left_out(text: str, tokens: list[str]) -> str:
    """What of `text` stands between its tokens, where their spans are not to be trusted: they count what was kept."""
    left, place = "", 0
    for letters in (token.lstrip("Ġ▁").removeprefix("##") for token in tokens):
        at = text.find(letters, place)
        if at < 0:
            return ""
        left, place = left + text[place:at], at + len(letters)
    return "".join((left + text[place:]).split())
