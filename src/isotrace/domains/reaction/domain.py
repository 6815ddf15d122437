"""The reaction domain: sequences are reaction SMILES, elements are atoms, numbered through all sides."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.domains.alignment import Alignment
from isotrace.domains.domain import PLAIN, Concept, Group, Labels, Look, Reading, Spelling
from isotrace.domains.molecule.domain import bonded_atoms, ecfp4, matches
from isotrace.domains.molecule.drawing import draw_molecule, draw_small
from isotrace.domains.molecule.sketch import draw_sketch, picture_of
from isotrace.domains.molecule.spelling import fragments, respelled
from isotrace.domains.molecule.vocabulary.concepts import placed
from isotrace.domains.molecule.vocabulary.degenerate import degenerate
from isotrace.domains.molecule.vocabulary.scaffolds import scaffold_group
from isotrace.domains.molecule.vocabulary.syntax import SYNTAX
from isotrace.domains.reaction.concepts import (
    MAPPED_CONCEPTS,
    REACTION_CONCEPTS,
    mapped_instances,
    reaction_instances,
)
from isotrace.domains.reaction.sketch import reaction_sketch
from isotrace.domains.reaction.tokens import SIDES, parse_reaction, reaction_units

_PLACE = {concept.name: i for i, concept in enumerate(REACTION_CONCEPTS + MAPPED_CONCEPTS)}
_NAME = 40  # letters of a component's SMILES in its name


@dataclass(frozen=True)
class ReactionDomain:
    """See `Domain`. `Reading.units` are `ReactionUnit`s, `Reading.parsed` is a `Reaction`.

    `maps`: the atom-mapped copy of every reaction, or None, and then nothing that needs maps is a concept.
    """

    maps: Mapping[str, str] | None = field(default=None, repr=False)
    name = "reaction"
    element = "atom"
    field = "chemistry"

    def with_maps(self, maps: Mapping[str, str]) -> "ReactionDomain":
        """This domain with reacting centre, leaving group and partners as concepts. `maps` leads from each reaction's
        text to the same reaction with atom maps; `label` raises InputError for a reaction that is not in it."""
        return ReactionDomain(maps)

    def read(
        self, text: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]], *, begun: bool = False
    ) -> Reading:
        reaction = parse_reaction(text)
        units = reaction_units(text, reaction, tokens, offsets)
        return Reading(text, units, reaction, tuple(unit.atoms if unit.kind == "atom" else () for unit in units))

    def begun(self, text: str, whole: str | None) -> str | None:
        """None: only whole reactions are read."""
        self.check(text)

    def renumbered(self, reading: Reading, numbers: Sequence[int]) -> Reading:
        raise InputError("atoms of a reaction are numbered as written: give its text.")

    def check(self, text: str) -> None:
        parse_reaction(text)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        return REACTION_CONCEPTS if self.maps is None else REACTION_CONCEPTS + MAPPED_CONCEPTS

    def label(self, reading: Reading) -> Labels:
        found: Iterator[tuple[str, tuple[int, ...]]] = reaction_instances(reading.text, reading.units, reading.parsed)
        if self.maps is not None:
            if reading.text not in self.maps:
                raise InputError(f"no atom-mapped copy of {reading.text!r} is given: add it to the maps.")
            found = chain(found, mapped_instances(reading.units, reading.parsed, self.maps[reading.text]))
        return Labels(tuple(placed(found, _PLACE)), np.full(len(self.concepts), np.nan))

    def match(self, kind: str, pattern: str, reading: Reading) -> list[tuple[int, ...]]:
        """As of molecules; a SMARTS sees the molecules of all sides, never the arrow."""
        return matches(kind, pattern, reading, reading.parsed.mol, self.name)

    def groups(self, texts: Sequence[str]) -> list[str]:
        """The group, among molecules, of the product with the most atoms."""
        return [scaffold_group(_main_product(text)) for text in texts]

    def same(self, text: str) -> str:
        reaction, sides = parse_reaction(text), {side: [] for side in SIDES}
        for atoms, side in zip(reaction.components, reaction.sides, strict=True):
            sides[side].append(Chem.MolFragmentToSmiles(reaction.mol, atoms))
        return ">".join(".".join(sorted(parts)) for parts in sides.values())

    def parent(self, text: str) -> str:
        return text

    substructures: frozenset[str] = frozenset()
    syntax = SYNTAX | {c.name for c in REACTION_CONCEPTS if c.group == "component" and not c.name.endswith("reactant")}
    fingerprint = "ECFP4 of reactants and of products, 2,048 bits each"

    def fingerprints(self, texts: Sequence[str]) -> np.ndarray:
        sides = [[Chem.MolFromSmiles(text.strip().split(">")[end]) for text in texts] for end in (0, -1)]
        return np.concatenate([ecfp4(side) for side in sides], 1)

    def complexity(self, text: str) -> float:
        parse_reaction(text)
        return float("nan")

    def degenerate(self, text: str, start: str | None, floor: float | None) -> str | None:
        """Of its largest product, see `isotrace.domains.molecule.vocabulary.degenerate`."""
        before = None if start is None else Chem.MolToSmiles(_main_product(start))
        return degenerate(Chem.MolToSmiles(_main_product(text)), before)

    def names(self, reading: Reading) -> list[dict[str, Any]]:
        """Also the `side` of every atom, and its `component`, counted through the whole reaction from 0."""
        reaction = reading.parsed
        of = {a: i for i, part in enumerate(reaction.components) for a in part}
        return [
            {"symbol": (s := atom.GetSymbol()), "name": f"{s}{i}", "side": side, "component": of[i]}
            for i, (atom, side) in enumerate(zip(reaction.mol.GetAtoms(), reaction.side_of(), strict=True))
        ]

    def parts(self, reading: Reading) -> tuple[Group, ...]:
        """Its components, by side and SMILES."""
        reaction, found = reading.parsed, []
        for i, (atoms, side) in enumerate(zip(reaction.components, reaction.sides, strict=True), 1):
            text = Chem.MolFragmentToSmiles(reaction.mol, atoms)
            found.append(Group(f"{side} {i}, {text if len(text) <= _NAME else text[: _NAME - 1] + '…'}", atoms))
        return tuple(found)

    def bonds(self, reading: Reading) -> np.ndarray:
        return bonded_atoms(reading.parsed.mol)

    def spellings(self, reading: Reading, n: int, seed: int) -> list[Spelling]:
        """Every component as a randomised SMILES, the components of each side in random order."""
        rng = np.random.default_rng(seed)
        reaction = reading.parsed
        parts = fragments(reaction.mol)
        found: dict[str, Spelling] = {}
        for _ in range(4 * n):
            written: list[str] = []
            original: list[int] = []
            for side in SIDES:
                here = [part for part, s in zip(parts, reaction.sides, strict=True) if s == side]
                spelled = [respelled(*here[int(i)], rng) for i in rng.permutation(len(here))]
                written.append(".".join(part.smiles for part in spelled))
                original += [atom for part in spelled for atom in part.original]
            text = ">".join(written)
            if text != reading.text:
                found.setdefault(text, Spelling(text, tuple(original)))
            if len(found) == n:
                break
        return list(found.values())

    def align(self, a: Reading, b: Reading) -> Alignment:
        raise InputError("two reactions cannot be compared part by part: give molecules or sequences of equal length.")

    def draw_pair(
        self, a: Reading, b: Reading, alignment: Alignment, weights: Sequence[Sequence[float]], scale: float
    ) -> tuple[str, str]:
        raise InputError("two reactions cannot be compared part by part: draw each.")

    def draw(self, reading: Reading, weights: Sequence[float], *, scale: float | None = None) -> str:
        return draw_sketch(reaction_sketch(reading.parsed), reading, weights, size=(720, 220), scale=scale)

    def draw_elements(self, reading: Reading, weights: Mapping[int, float], look: Look = PLAIN) -> str:
        drawn = reaction_sketch(reading.parsed)
        width = 340 if look.small else 720
        same: dict[str, Any] = {"size": (width, drawn.height(width)), "marks": drawn.marks}
        same |= {"diverging": look.diverging, "scale": look.scale}
        if look.small:
            return draw_small(drawn.mol, weights, **same)
        return draw_molecule(drawn.mol, weights, links=look.links, **same)

    def picture(self, reading: Reading) -> dict[str, Any]:
        return picture_of(reaction_sketch(reading.parsed), reading)


def _main_product(text: str) -> Chem.Mol:
    reaction = parse_reaction(text)
    products = [
        part for (part, _), side in zip(fragments(reaction.mol), reaction.sides, strict=True) if side == "product"
    ]
    largest = max(products, key=lambda mol: (mol.GetNumAtoms(), Chem.MolToSmiles(mol)))
    Chem.GetSymmSSSR(largest)  # a part cut out of a molecule does not know its rings
    return largest


REACTION = ReactionDomain()
