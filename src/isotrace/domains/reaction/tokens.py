"""Reaction SMILES `reactants>reagents>products`: parsing, and what every token stands for.

Atoms are numbered through the whole text in the order of writing. A component is a connected molecule of one side, so
the two ions of a salt are two components.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.domains.molecule.smiles import Lexeme, lex
from isotrace.domains.molecule.tokens import TokenUnit, map_lexemes, parse

Side = Literal["reactant", "reagent", "product"]
SIDES: tuple[Side, ...] = ("reactant", "reagent", "product")


@dataclass(frozen=True)
class ReactionUnit(TokenUnit):
    """A token as `TokenUnit` describes it, of kind `arrow` for `>` and `>>`.

    `side` is None for arrows and special tokens, `component` (counted through the whole reaction) for dots too.
    """

    side: Side | None
    component: int | None


@dataclass(frozen=True)
class Reaction:
    """`mol` holds every atom of the reaction, in the order of writing; `components` the atoms of each component, and
    `sides` the side of each."""

    mol: Chem.Mol
    components: tuple[tuple[int, ...], ...]
    sides: tuple[Side, ...]

    def atoms(self, side: Side) -> tuple[int, ...]:
        return tuple(a for part, s in zip(self.components, self.sides, strict=True) if s == side for a in part)

    def side_of(self) -> list[Side]:
        """Side of every atom."""
        found: dict[int, Side] = {a: side for part, side in zip(self.components, self.sides, strict=True) for a in part}
        return [found[a] for a in range(self.mol.GetNumAtoms())]


def parse_reaction(text: str) -> Reaction:
    """Raises InputError, naming the side, if `text` is not `A>R>B` or `A>>B`, if it has no reactant or no product, or
    if a side is no valid SMILES. Only the reagents may be empty."""
    parts = _sides(text)
    side_of: list[Side] = []
    for side, part in zip(SIDES, parts, strict=True):
        with _named(side):
            side_of.extend(side for item in lex(part) if item.kind == "atom")
    try:
        mol = parse(".".join(filter(None, parts)))
    except InputError:
        for side, part in zip(SIDES, parts, strict=True):
            with _named(side):
                parse(part) if part else None
        raise
    components = sorted((tuple(sorted(part)) for part in Chem.GetMolFrags(mol)), key=min)
    return Reaction(mol, tuple(components), tuple(side_of[part[0]] for part in components))


@contextmanager
def _named(side: Side) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"the {side}s cannot be read: {error}") from None


def reaction_units(
    text: str, reaction: Reaction, tokens: Sequence[str], offsets: Sequence[tuple[int, int]]
) -> tuple[ReactionUnit, ...]:
    """One unit per token of `text`, which `reaction` was parsed from. Raises InputError as `token_map` does."""
    component_of = {a: i for i, part in enumerate(reaction.components) for a in part}
    arrows = [i for i, character in enumerate(text) if character == ">" and text[i - 1] != "-"]
    units = []
    for unit in map_lexemes(text, _lexemes(text), tokens, offsets):
        outside = unit.kind in ("special", "arrow")
        side = None if outside else SIDES[sum(arrow < unit.start for arrow in arrows)]
        component = component_of[unit.atoms[0]] if unit.atoms else None
        units.append(ReactionUnit(**vars(unit), side=side, component=component))
    return tuple(units)


def _sides(text: str) -> list[str]:
    """The three sides. The `>` of a dative bond `->` parts nothing."""
    if not text.strip():
        raise InputError("the reaction is empty: give reaction SMILES, reactants>>product.")
    parts = text.replace("->", "-\0").split(">")
    if len(parts) != 3:
        raise InputError(f"{text!r} has {len(parts) - 1} arrows '>': write reactants>reagents>products or A>>B.")
    parts = [part.replace("\0", ">") for part in parts]
    for side, part in ((SIDES[0], parts[0]), (SIDES[2], parts[2])):
        if not part:
            raise InputError(f"{text!r} has no {side}: write reactants>reagents>products or reactants>>product.")
    return parts


def _lexemes(text: str) -> list[Lexeme]:
    """Of all sides, with offsets, atoms and partners counted through the whole text."""
    items: list[Lexeme] = []
    start = atoms = 0
    for number, part in enumerate(_sides(text)):
        if number:
            items.append(Lexeme("arrow", ">", start - 1, start, ()))
        first = len(items)
        for item in lex(part):
            items.append(
                Lexeme(
                    item.kind,
                    item.text,
                    item.start + start,
                    item.end + start,
                    tuple(a + atoms for a in item.atoms),
                    None if item.partner is None else item.partner + first,
                    item.depth,
                )
            )
        atoms += sum(item.kind == "atom" for item in items[first:])
        start += len(part) + 1
    return items
