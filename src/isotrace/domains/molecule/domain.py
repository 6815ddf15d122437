"""The molecule domain: sequences are SMILES, elements are atoms."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator

from isotrace.base.errors import InputError
from isotrace.domains.alignment import Alignment
from isotrace.domains.domain import PLAIN, Concept, Group, Labels, Look, Reading, Spelling, regular_expression
from isotrace.domains.molecule.alignment import align
from isotrace.domains.molecule.drawing import draw_molecule, draw_small
from isotrace.domains.molecule.groups import disjoint_groups
from isotrace.domains.molecule.sketch import alike, draw_signed, draw_sketch, picture_of, sketch
from isotrace.domains.molecule.spelling import spellings
from isotrace.domains.molecule.tokens import TokenUnit, begin, parse, parse_or_begin, token_map
from isotrace.domains.molecule.vocabulary.concepts import CONCEPTS, atom_tokens, label_molecule, tokens_of
from isotrace.domains.molecule.vocabulary.degenerate import degenerate
from isotrace.domains.molecule.vocabulary.patterns import atoms_matching, compiled
from isotrace.domains.molecule.vocabulary.scaffolds import scaffold_group
from isotrace.domains.molecule.vocabulary.syntax import SYNTAX

KINDS = ("smarts", "regex")


class Molecule:
    """See `Domain`. `Reading.units` are `TokenUnit`s, `Reading.parsed` is the `Chem.Mol` that `parse` returns."""

    name = "molecule"
    element = "atom"
    field = "chemistry"

    def read(
        self, text: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]], *, begun: bool = False
    ) -> Reading:
        mol = begin(text) if begun else parse(text)
        return _reading(text, mol, token_map(text, tokens, offsets, begun=begun))

    def begun(self, text: str, whole: str | None) -> str | None:
        return parse_or_begin(text, whole)[1]

    def renumbered(self, reading: Reading, numbers: Sequence[int]) -> Reading:
        units = [replace(unit, atoms=tuple(numbers[a] for a in unit.atoms)) for unit in reading.units]
        return _reading(reading.text, Chem.RenumberAtoms(reading.parsed, np.argsort(numbers).tolist()), units)

    def check(self, text: str) -> None:
        parse(text)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        return CONCEPTS

    def label(self, reading: Reading) -> Labels:
        return label_molecule(reading.text, reading.units, reading.parsed)

    def match(self, kind: str, pattern: str, reading: Reading) -> list[tuple[int, ...]]:
        """`smarts`: the tokens of the atoms of each match; `regex`: those that cover any of its characters."""
        return matches(kind, pattern, reading, reading.parsed, self.name)

    def groups(self, texts: Sequence[str]) -> list[str]:
        """Murcko scaffolds; molecules without a ring by their carbon skeleton (see `scaffold_group`)."""
        return [scaffold_group(parse(text)) for text in texts]

    def same(self, text: str) -> str:
        return Chem.MolToSmiles(parse(text))

    def parent(self, text: str) -> str:
        """The fragment with most heavy atoms, as it is written; of equal ones the first. The text itself where a ring
        closure leads from one fragment into another."""
        parts = text.strip().split(".")
        return max(parts, key=_heavy_atoms) if len(parts) > 1 and all(map(_heavy_atoms, parts)) else text

    substructures = frozenset(
        concept.name
        for concept in CONCEPTS
        if concept.group == "functional group"
        or re.fullmatch(r"(\d|larger).*-membered ring|element (F|Cl|Br|I)", concept.name)
    )
    syntax = SYNTAX
    fingerprint = "ECFP4, 2,048 bits"

    def fingerprints(self, texts: Sequence[str]) -> np.ndarray:
        return ecfp4([parse(text) for text in texts])

    def count_fingerprints(self, texts: Sequence[str]) -> np.ndarray:
        """As `fingerprints`, how often each environment is there."""
        return ecfp4([parse(text) for text in texts], counted=True)

    def complexity(self, text: str) -> float:
        parse(text)
        return float("nan")

    def degenerate(self, text: str, start: str | None, floor: float | None) -> str | None:
        """See `isotrace.domains.molecule.vocabulary.degenerate`."""
        return degenerate(text, start)

    def names(self, reading: Reading) -> list[dict[str, Any]]:
        symbols = [atom.GetSymbol() for atom in reading.parsed.GetAtoms()]
        return [{"symbol": symbol, "name": f"{symbol}{i}"} for i, symbol in enumerate(symbols)]

    def parts(self, reading: Reading) -> tuple[Group, ...]:
        """Functional groups, rings and the rest, see `isotrace.domains.molecule.groups`."""
        return disjoint_groups(reading.parsed)

    def bonds(self, reading: Reading) -> np.ndarray:
        return bonded_atoms(reading.parsed)

    def spellings(self, reading: Reading, n: int, seed: int) -> list[Spelling]:
        """Randomised SMILES."""
        found = [s for s in spellings(reading.parsed, n + 1, seed) if s.smiles != reading.text]
        return [Spelling(s.smiles, s.original) for s in found[:n]]

    def align(self, a: Reading, b: Reading) -> Alignment:
        """By the maximum common substructure, see `isotrace.domains.molecule.alignment`."""
        return align(a, b)

    def draw_pair(
        self, a: Reading, b: Reading, alignment: Alignment, weights: Sequence[Sequence[float]], scale: float
    ) -> tuple[str, str]:
        """Without the tokens of bonds and syntax; a token that writes several atoms colours each by its share."""
        first, second = (
            draw_signed(drawn, one, own, changed, scale)
            for drawn, one, own, changed in zip(alike(a, b, alignment), (a, b), weights, alignment.changed, strict=True)
        )
        return first, second

    def draw(self, reading: Reading, weights: Sequence[float], *, scale: float | None = None) -> str:
        return draw_sketch(sketch(reading.parsed), reading, weights, size=(360, 240), scale=scale)

    def draw_elements(self, reading: Reading, weights: Mapping[int, float], look: Look = PLAIN) -> str:
        colours: dict[str, Any] = {"diverging": look.diverging, "scale": look.scale}
        if look.small:
            return draw_small(reading.parsed, weights, **colours)
        return draw_molecule(reading.parsed, weights, size=(460, 340), **colours)

    def picture(self, reading: Reading) -> dict[str, Any]:
        return picture_of(sketch(reading.parsed), reading)


def _reading(text: str, mol: Chem.Mol, units: Sequence[TokenUnit]) -> Reading:
    return Reading(text, tuple(units), mol, tuple(unit.atoms if unit.kind == "atom" else () for unit in units))


def _heavy_atoms(fragment: str) -> int:
    """0 for one that is no molecule by itself."""
    mol = Chem.MolFromSmiles(fragment, sanitize=False)
    return 0 if mol is None else mol.GetNumHeavyAtoms()


def ecfp4(mols: Sequence[Chem.Mol], counted: bool = False) -> np.ndarray:
    """Morgan fingerprints of radius 2 (doi 10.1021/ci100050t), float32 `[n, 2048]` of 0 and 1, or of counts."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2_048)
    read = generator.GetCountFingerprintAsNumPy if counted else generator.GetFingerprintAsNumPy
    found = [read(mol) for mol in mols]
    return np.asarray(found, dtype=np.float32).reshape(len(mols), 2_048)


def bonded_atoms(mol: Chem.Mol) -> np.ndarray:
    """int64 `[bonds, 2]`."""
    pairs = [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in mol.GetBonds()]
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2)


def matches(kind: str, pattern: str, reading: Reading, mol: Chem.Mol, domain: str) -> list[tuple[int, ...]]:
    """`Domain.match` of a domain whose elements are the atoms of `mol`."""
    if kind == "smarts":
        writers = atom_tokens(reading.units)
        found = atoms_matching(compiled(pattern), mol)
        # Two matches may differ in atoms and yet be written by the same tokens.
        return list(dict.fromkeys(tokens_of(atoms, writers) for atoms in found))
    if kind == "regex":
        spans = [m.span() for m in regular_expression(pattern).finditer(reading.text)]
        covering = [
            tuple(i for i, u in enumerate(reading.units) if u.start < end and start < u.end) for start, end in spans
        ]
        return list(dict.fromkeys(tokens for tokens in covering if tokens))
    raise InputError(f"the {domain} domain knows no patterns of kind {kind!r}: give one of {', '.join(KINDS)}.")


MOLECULE = Molecule()
