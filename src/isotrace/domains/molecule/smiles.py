"""Lexing SMILES: which atom, bond or piece of syntax every character stands for.

The lexer covers OpenSMILES: organic-subset and bracket atoms (isotope, chirality, hydrogens, charge,
atom map), all bond symbols, one- and two-digit ring closures (`1`, `%10`, `%(123)`), branches and dots.
Atom indices follow the order in which atoms are written, which is RDKit's order too as long as explicit
hydrogens are kept when parsing.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from isotrace.base.errors import InputError

UnitKind = Literal["atom", "bond", "ring", "branch", "dot", "arrow", "special"]

_BRACKETED = r"\[[^\[\]]+\]"
_LEXEME = (
    r"(?P<atom>{}|Br|Cl|[BCNOPSFI]|[bcnops]|\*)"
    r"|(?P<bond>->|<-|[-=#$:/\\~])"
    r"|(?P<ring>%\d\d|%\(\d+\)|\d{})"
    r"|(?P<branch>[()])"
    r"|(?P<dot>\.)"
)
LEXEME = re.compile(_LEXEME.format(_BRACKETED, ""))
BEGUN = re.compile(_LEXEME.format(rf"{_BRACKETED}|\[[^\[\]]*$", r"|%(?:\d?|\(\d*)$"))
"""With a bracket or a ring's number that the end of the text cuts off."""
BRACKET = re.compile(
    r"\[(?P<isotope>\d+)?(?P<element>\*|[A-Z][a-z]?|se|as|te|si|[bcnops])"
    r"(?P<chirality>@(?:@|(?:TH|AL|SP|TB|OH)\d+)?)?(?P<hydrogens>H\d*)?"
    r"(?P<charge>\+\d+|-\d+|\++|-+)?(?::(?P<map>\d+))?\]"
)


@dataclass(frozen=True)
class Lexeme:
    """One unit of SMILES syntax.

    `start:end` are character offsets. `atoms` holds the atom itself for an atom, the two atoms joined for a
    bond symbol or ring digit (in order of writing), the atom a branch hangs on for `(` and `)`, nothing for
    a dot. `partner` is the index of the lexeme that closes or opens the same ring or branch.
    """

    kind: UnitKind
    text: str
    start: int
    end: int
    atoms: tuple[int, ...]
    partner: int | None = None
    depth: int = 0


def lex(smiles: str, *, begun: bool = False) -> list[Lexeme]:
    """Lexemes of `smiles`, in order, with ring closures and branches paired.

    `begun`: what stands there may go on. Rings and branches then need no end, which leaves them without `partner`, a
    bond symbol no second atom, which leaves it without `atoms`, and the last bracket, an atom, no closing one.
    Raises InputError at the first character that is no SMILES, at an unclosed ring or branch, and at a
    bond symbol that joins nothing.
    """
    return [*_lexemes(smiles, begun)]


@lru_cache(4)  # who reads a molecule asks for its atoms and for its tokens
def _lexemes(smiles: str, begun: bool) -> tuple[Lexeme, ...]:
    items: list[Lexeme] = []
    open_rings: dict[str, tuple[int, list[int]]] = {}
    branches: list[tuple[int, int | None]] = []
    pending: list[int] = []
    previous: int | None = None
    n_atoms = 0
    cursor = 0
    for match in (BEGUN if begun else LEXEME).finditer(smiles):
        if match.start() != cursor:
            break
        cursor = match.end()
        kind, text, span = str(match.lastgroup), match.group(), match.span()
        here = len(items)
        if kind == "atom":
            if text[0] == "[" and text[-1] == "]" and not BRACKET.fullmatch(text):
                raise InputError(f"{text!r} at character {span[0] + 1} is no SMILES atom: check the bracket.")
            atom = n_atoms
            n_atoms += 1
            for index in pending:
                joined = () if previous is None else (previous, atom)
                items[index] = _replace(items[index], atoms=joined)
            pending = []
            previous = atom
            items.append(Lexeme("atom", text, *span, (atom,), depth=len(branches)))
        elif kind == "bond":
            pending.append(here)
            items.append(Lexeme("bond", text, *span, (), depth=len(branches)))
        elif kind == "ring":
            if previous is None:
                raise InputError(f"ring digit {text!r} at character {span[0] + 1} follows no atom.")
            label = text.strip("%()")
            label = label.lstrip("0") or "0"
            if not LEXEME.fullmatch(text):
                label = text  # cut off: it closes nothing yet
            if label not in open_rings:
                open_rings[label] = here, pending
                items.append(Lexeme("ring", text, *span, (previous,), depth=len(branches)))
            else:
                opener, before = open_rings.pop(label)
                joined = (items[opener].atoms[0], previous)
                items[opener] = _replace(items[opener], partner=here)
                items.append(Lexeme("ring", text, *span, joined, opener, len(branches)))
                for index in (opener, *before, *pending):
                    items[index] = _replace(items[index], atoms=joined)
            pending = []
        elif text == "(":
            branches.append((here, previous))
            items.append(Lexeme("branch", text, *span, _one(previous), depth=len(branches)))
        elif text == ")":
            if not branches:
                raise InputError(f"')' at character {span[0] + 1} closes no branch: check the parentheses.")
            opener, previous = branches.pop()
            items[opener] = _replace(items[opener], partner=here)
            items.append(Lexeme("branch", text, *span, _one(previous), opener, len(branches) + 1))
        else:
            previous = None
            items.append(Lexeme("dot", text, *span, (), depth=len(branches)))
    if cursor != len(smiles):
        what = "not UTF-8" if "\ud800" <= smiles[cursor] <= "\udfff" else "no SMILES"
        raise InputError(f"character {cursor + 1} ({smiles[cursor]!r}) of {smiles!r} is {what}: correct the input.")
    if open_rings and not begun:
        raise InputError(f"ring closure {next(iter(open_rings))} of {smiles!r} is never closed.")
    if branches and not begun:
        raise InputError(f"a branch of {smiles!r} is never closed: check the parentheses.")
    going_on = {*pending, *(index for _, before in open_rings.values() for index in before)} if begun else ()
    for index, item in enumerate(items):
        if item.kind == "bond" and len(item.atoms) != 2 and index not in going_on:
            raise InputError(f"bond {item.text!r} at character {item.start + 1} of {smiles!r} joins nothing.")
    return tuple(items)


def _replace(item: Lexeme, **changes) -> Lexeme:
    return Lexeme(**{**item.__dict__, **changes})


def _one(atom: int | None) -> tuple[int, ...]:
    return () if atom is None else (atom,)
