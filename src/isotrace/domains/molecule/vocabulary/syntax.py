"""Concepts of SMILES syntax.

They are tested on the characters a token covers, so a masked token keeps the concepts of what it replaced.
"""

from collections.abc import Iterator, Sequence

from isotrace.domains.domain import Concept
from isotrace.domains.molecule.tokens import TokenUnit

BOND_NAMES = {"=": "double", "#": "triple", "-": "single", "/": "up", "\\": "down"}
_DIGITS = range(1, 7)

_NAMES = {
    "bond symbol": tuple(f"{name} bond symbol" for name in BOND_NAMES.values()),
    "branch": (
        "branch opening",
        "branch closing",
        "branch depth 1",
        "branch depth 2",
        "branch depth 3 or more",
        "atom bearing a branch",
        "atom after a branch",
        "pair of parentheses",
    ),
    "ring digit": (
        "ring opening",
        "ring closing",
        *(f"ring digit {n}" for n in _DIGITS),
        "atom bearing a ring digit",
        "token beside a ring digit",
        "pair of ring digits",
    ),
    "syntax": ("dot", "bracket atom", "chirality mark @", "chirality mark @@"),
    "position": ("first token", "last token", "special token at the start", "special token at the end"),
}
SYNTAX_CONCEPTS = tuple(Concept(name, group, "token") for group, names in _NAMES.items() for name in names)
SYNTAX = frozenset(concept.name for concept in SYNTAX_CONCEPTS)


def syntax_concepts(text: str, units: Sequence[TokenUnit]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, token positions). Pairs hold the token that opens and the one that closes; all else is single tokens."""
    real = [i for i, unit in enumerate(units) if unit.kind != "special"]
    ring_atoms = {a for u in units if u.kind == "ring" for a in u.atoms}
    branch_atoms = {a for u in units if u.kind == "branch" for a in u.atoms}
    for i, unit in enumerate(units):
        here = (i,)
        if unit.kind == "special":
            yield "special token at the start" if i < real[0] else "special token at the end", here
            continue
        if i == real[0]:
            yield "first token", here
        if i == real[-1]:
            yield "last token", here
        if unit.depth:
            yield f"branch depth {unit.depth}" if unit.depth < 3 else "branch depth 3 or more", here
        if any(real[0] <= j <= real[-1] and units[j].kind == "ring" for j in (i - 1, i + 1)):
            yield "token beside a ring digit", here
        written = text[unit.start : unit.end]
        if unit.kind == "atom":
            yield from ((name, here) for name in _of_atom(text, unit, written))
            if not ring_atoms.isdisjoint(unit.atoms):
                yield "atom bearing a ring digit", here
            if not branch_atoms.isdisjoint(unit.atoms):
                yield "atom bearing a branch", here
            if _after_branch(text, units, i):
                yield "atom after a branch", here
        elif unit.kind == "bond" and written in BOND_NAMES:
            yield f"{BOND_NAMES[written]} bond symbol", here
        elif unit.kind == "dot":
            yield "dot", here
        elif unit.kind == "ring" and (label := written.strip("%()").lstrip("0") or "0") in map(str, _DIGITS):
            yield f"ring digit {label}", here
        if unit.kind in ("ring", "branch") and unit.partner is not None and unit.partner != i:
            ring, opens = unit.kind == "ring", unit.partner > i
            yield f"{unit.kind} {'opening' if opens else 'closing'}", here
            if opens:
                yield "pair of ring digits" if ring else "pair of parentheses", (i, unit.partner)


def _of_atom(text: str, unit: TokenUnit, written: str) -> Iterator[str]:
    if text.rfind("[", 0, unit.start + 1) > text.rfind("]", 0, unit.start):
        yield "bracket atom"
        if "@@" in written:
            yield "chirality mark @@"
        elif "@" in written:
            yield "chirality mark @"


def _after_branch(text: str, units: Sequence[TokenUnit], i: int) -> bool:
    """An atom whose token follows a closing parenthesis, bond symbols between them ignored."""
    before = i - 1
    while before >= 0 and units[before].kind == "bond":
        before -= 1
    return before >= 0 and units[before].kind != "special" and text[: units[before].end].endswith(")")
