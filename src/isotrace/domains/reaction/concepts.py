"""Concepts of reactions, laid on tokens: those of molecules, role and place of components, and what atom maps tell.

A component's instance holds all its tokens, syntax included; concepts of atoms hold atom tokens only.
"""

from collections.abc import Iterator, Sequence

from isotrace.domains.domain import Concept
from isotrace.domains.molecule.vocabulary.concepts import TOKEN_CONCEPTS, atom_tokens, token_instances, tokens_of
from isotrace.domains.reaction.mapping import Changes, changes, mapping
from isotrace.domains.reaction.tokens import SIDES, Reaction, ReactionUnit

_PLAIN = {
    "role": SIDES,
    "component": (
        "arrow",
        *(f"dot between {side}s" for side in SIDES),
        "first token of a component",
        "last token of a component",
        "first reactant",
        "later reactant",
    ),
}
_ORIGINS = ("first", "second", "third")
_MAPPED = {
    "reacting centre": (
        "reacting centre",
        "reacting centre before",
        "reacting centre after",
        "beside the reacting centre",
        "bond broken",
        "bond formed",
        "bond order changed",
        "hydrogen lost",
        "hydrogen gained",
        "charge changed",
    ),
    "role by atom map": ("reactant by atom map", "reagent by atom map", "leaving group"),
    "atom-map partner": (
        "atom with a partner",
        *(f"atom from the {n} contributing reactant" for n in _ORIGINS),
        "partner beside the reacting centre",
    ),
}
REACTION_CONCEPTS: tuple[Concept, ...] = (
    *TOKEN_CONCEPTS,
    *(Concept(name, group, "token") for group, names in _PLAIN.items() for name in names),
)
MAPPED_CONCEPTS: tuple[Concept, ...] = tuple(
    Concept(name, group, "token") for group, names in _MAPPED.items() for name in names
)

_Instances = Iterator[tuple[str, tuple[int, ...]]]


def reaction_instances(text: str, units: Sequence[ReactionUnit], reaction: Reaction) -> _Instances:
    """(name, token positions, ascending) of every instance of `REACTION_CONCEPTS`."""
    yield from token_instances(text, units, reaction.mol)
    tokens = component_tokens(units, len(reaction.components))
    reactants = 0
    for side, found in zip(reaction.sides, tokens, strict=True):
        yield side, found
        yield "first token of a component", found[:1]
        yield "last token of a component", found[-1:]
        if side == "reactant":
            yield "later reactant" if reactants else "first reactant", found
            reactants += 1
    for position, unit in enumerate(units):
        if unit.kind == "arrow":
            yield "arrow", (position,)
        elif unit.kind == "dot":
            yield f"dot between {unit.side}s", (position,)


def mapped_instances(units: Sequence[ReactionUnit], reaction: Reaction, mapped: str) -> _Instances:
    """The same of `MAPPED_CONCEPTS`; `mapped` is the reaction with atom maps. Raises InputError as `mapping` and
    `changes` do."""
    found = changes(reaction, mapping(reaction, mapped))
    writers = atom_tokens(units)
    tokens = component_tokens(units, len(reaction.components))
    after = set(reaction.atoms("product"))
    for name, atoms in (
        ("reacting centre before", [a for a in found.centre if a not in after]),
        ("reacting centre after", [a for a in found.centre if a in after]),
    ):
        if atoms:
            yield "reacting centre", tokens_of(atoms, writers)
            yield name, tokens_of(atoms, writers)
    for name, bonds in (
        ("bond broken", found.broken),
        ("bond formed", found.formed),
        ("bond order changed", found.altered),
        ("leaving group", found.leaving),
    ):
        for atoms in bonds:
            yield name, tokens_of(atoms, writers)
    for i, side in enumerate(reaction.sides):
        if side != "product":
            yield "reactant by atom map" if i in found.contributing else "reagent by atom map", tokens[i]
    named = dict(_of_single_atoms(reaction, found, after))
    for position, unit in enumerate(units):
        if unit.kind == "atom":
            for name in dict.fromkeys(name for atom in unit.atoms for name in named[atom]):
                yield name, (position,)


def component_tokens(units: Sequence[ReactionUnit], n: int) -> list[tuple[int, ...]]:
    """Positions of the tokens of each of `n` components, ascending; dots, arrows and special tokens are in none."""
    found: list[list[int]] = [[] for _ in range(n)]
    for position, unit in enumerate(units):
        if unit.component is not None:
            found[unit.component].append(position)
    return [tuple(positions) for positions in found]


def _of_single_atoms(reaction: Reaction, found: Changes, after: set[int]) -> Iterator[tuple[int, list[str]]]:
    component_of = {a: i for i, part in enumerate(reaction.components) for a in part}
    centre = set(found.centre)
    beside = {other.GetIdx() for atom in centre for other in reaction.mol.GetAtomWithIdx(atom).GetNeighbors()} - centre
    for atom in reaction.mol.GetAtoms():
        i, names = atom.GetIdx(), []
        if i in beside:
            names.append("beside the reacting centre")
        if (other := found.partner.get(i)) is not None:
            names.append("atom with a partner")
            if other in beside:
                names.append("partner beside the reacting centre")
            rank = found.contributing.index(component_of[other if i in after else i])
            if rank < len(_ORIGINS):
                names.append(f"atom from the {_ORIGINS[rank]} contributing reactant")
            start, end = (other, i) if i in after else (i, other)
            first, last = reaction.mol.GetAtomWithIdx(start), reaction.mol.GetAtomWithIdx(end)
            if gained := last.GetTotalNumHs(True) - first.GetTotalNumHs(True):
                names.append("hydrogen gained" if gained > 0 else "hydrogen lost")
            if first.GetFormalCharge() != last.GetFormalCharge():
                names.append("charge changed")
        yield i, names
