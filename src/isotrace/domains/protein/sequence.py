"""What every token of a tokenised protein sequence stands for.

A sequence is written in capital one-letter code (IUPAC-IUB 1983): the 20 residues, selenocysteine U, pyrrolysine O,
and the uncertain B (N or D), Z (Q or E) and X (any). Spaces may stand between residues, as the tokenizers of
ProtBert and AntiBERTy want them; they are layout and belong to no residue.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from isotrace.base.errors import InputError

STANDARD = "ACDEFGHIKLMNPQRSTVWY"
LETTERS = frozenset(STANDARD + "UOBZX")


@dataclass(frozen=True)
class ResidueUnit:
    """One token and what it stands for.

    `text` is the token as the tokenizer names it, `start:end` its characters, `residues` the residues it covers,
    numbered from 0: one for most tokenizers, several where a vocabulary merges them, none for a special token. A
    mask token stands for what it replaced.
    """

    text: str
    kind: Literal["residue", "special"]
    start: int
    end: int
    residues: tuple[int, ...]

    @property
    def about(self) -> tuple[int, ...]:
        return self.residues


def residues(text: str) -> str:
    """The residues of `text` without spaces. Raises InputError, naming letter and position (from 1), for any other
    character and for an empty sequence."""
    sequence = text.replace(" ", "")
    if not sequence:
        raise InputError("the sequence is empty: give residues in one-letter code.")
    for position, letter in enumerate(sequence, 1):
        if letter not in LETTERS:
            raise InputError(f"{letter!r} at position {position} is no residue: {_advice(letter)}.")
    return sequence


def residue_map(text: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]]) -> tuple[ResidueUnit, ...]:
    """One `ResidueUnit` per token of `text`; a token whose offset covers no residue is special.

    Raises InputError if `text` is no sequence (see `residues`), if there is not one offset per token, or if the
    tokens leave out, repeat or overrun residues.
    """
    residues(text)
    if len(tokens) != len(offsets):
        raise InputError(f"{len(tokens)} tokens but {len(offsets)} offsets: give one offset per token.")
    place = [i for i, letter in enumerate(text) if letter != " "]
    units, following = [], 0
    for token, (start, end) in zip(tokens, offsets, strict=True):
        if not 0 <= start <= end <= len(text):
            raise InputError(f"token {token!r} covers characters {start}:{end} of {len(text)}: offsets do not fit.")
        first = following
        while following < len(place) and start <= place[following] < end:
            following += 1
        covered = tuple(range(first, following))
        if len(covered) != end - start - text.count(" ", start, end):
            raise InputError(
                f"token {token!r} covers characters {start}:{end} but residue {first + 1} comes next: "
                "pass the offsets as the tokenizer gives them."
            )
        units.append(ResidueUnit(token, "residue" if covered else "special", start, end, covered))
    if following != len(place):
        raise InputError(f"the tokens stop at residue {following} of {len(place)}: tokenise without truncation.")
    return tuple(units)


def _advice(letter: str) -> str:
    if letter == "*":
        return "it marks a stop codon, so end the sequence before it"
    if letter in "-.":
        return "it marks a gap, so give the sequence without alignment"
    if letter.upper() in LETTERS:
        return "write residues in capitals"
    if letter == "J":
        return "write L or I, or X if it is not known which"
    return f"use {STANDARD}, U, O, or B, Z, X where uncertain"
