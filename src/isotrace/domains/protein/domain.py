"""The protein domain: chains in one-letter code, read residue by residue."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from isotrace.base.errors import InputError
from isotrace.domains.alignment import Alignment
from isotrace.domains.domain import PLAIN, Concept, Group, Labels, Look, Reading, Spelling
from isotrace.domains.protein.alignment import align
from isotrace.domains.protein.clusters import kmer_groups
from isotrace.domains.protein.degenerate import complexity, degenerate
from isotrace.domains.protein.drawing import Band, draw_track
from isotrace.domains.protein.sequence import STANDARD, residue_map, residues
from isotrace.domains.protein.vocabulary.concepts import CONCEPTS, TokensOf, instances, numbers
from isotrace.domains.protein.vocabulary.motifs import matches

WINDOW, AROUND = 10, 10
"""Residues of a part of a chain that has no named parts; shown on either side of the strongest in a small drawing."""


class ProteinDomain:
    """See `isotrace.domains.domain.Domain`. `Reading.parsed` is the string of residues, without spaces."""

    name = "protein"
    element = "residue"
    field = "biology"

    def read(
        self, text: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]], *, begun: bool = False
    ) -> Reading:
        units = residue_map(text, tokens, offsets)
        return Reading(text, units, self._parse(text), tuple(unit.residues for unit in units))

    def begun(self, text: str, whole: str | None) -> str | None:
        """None: the beginning of a chain is a chain."""
        self.check(text)

    def renumbered(self, reading: Reading, numbers: Sequence[int]) -> Reading:
        return reading  # residues are written in one order

    def check(self, text: str) -> None:
        self._parse(text)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        return CONCEPTS

    def label(self, reading: Reading) -> Labels:
        sequence = self.sequence(reading)
        return Labels(tuple(instances(sequence, reading.units)), numbers(sequence))

    def match(self, kind: str, pattern: str, reading: Reading) -> list[tuple[int, ...]]:
        """`regex` or `prosite`, over the residues without spaces; see `isotrace.domains.protein.vocabulary.motifs`."""
        tokens = TokensOf(reading.units)
        return [tokens(found) for found in matches(kind, pattern, self.sequence(reading))]

    def groups(self, texts: Sequence[str]) -> list[str]:
        """Clusters by shared 5-mers; see `isotrace.domains.protein.clusters`."""
        return kmer_groups([residues(text) for text in texts])

    def same(self, text: str) -> str:
        return residues(text)

    def parent(self, text: str) -> str:
        return text

    substructures: frozenset[str] = frozenset()
    syntax = frozenset(concept.name for concept in CONCEPTS if concept.name.startswith("special token"))
    fingerprint = "one-hot residues where all are as long, else counts of residues and pairs"

    def fingerprints(self, texts: Sequence[str]) -> np.ndarray:
        chains = [residues(text) for text in texts]
        if len({len(chain) for chain in chains}) == 1:
            found = [[letter == one for letter in chain for one in STANDARD] for chain in chains]
            return np.asarray(found, dtype=np.float32)
        words = [*STANDARD, *(a + b for a in STANDARD for b in STANDARD)]
        place = {word: i for i, word in enumerate(words)}
        counts = np.zeros((len(chains), len(words)), dtype=np.float32)
        for row, chain in zip(counts, chains, strict=True):
            for word in (*chain, *map("".join, pairwise(chain))):
                if word in place:
                    row[place[word]] += 1
        return counts

    def complexity(self, text: str) -> float:
        """The lowest entropy of twelve neighbouring residues."""
        return complexity(text)

    def degenerate(self, text: str, start: str | None, floor: float | None) -> str | None:
        """See `isotrace.domains.protein.degenerate`."""
        return degenerate(text, start, floor)

    def names(self, reading: Reading) -> list[dict[str, Any]]:
        """`number`: of the residue, from 1."""
        letters = enumerate(self.sequence(reading), 1)
        return [{"symbol": letter, "name": f"{letter}{i}", "number": i} for i, letter in letters]

    def parts(self, reading: Reading) -> tuple[Group, ...]:
        """Windows of WINDOW residues, for want of names."""
        n = len(self.sequence(reading))
        windows = [range(first, min(first + WINDOW, n)) for first in range(0, n, WINDOW)]
        return tuple(Group(_numbered(where), tuple(where)) for where in windows)

    def bonds(self, reading: Reading) -> np.ndarray:
        first = np.arange(reading.n_elements - 1, dtype=np.int64)
        return np.stack([first, first + 1], axis=1)

    def spellings(self, reading: Reading, n: int, seed: int) -> list[Spelling]:
        return []

    def align(self, a: Reading, b: Reading) -> Alignment:
        """Residue by residue, of two chains of equal length."""
        return align(a, b, self.sequence(a), self.sequence(b))

    def draw_pair(
        self, a: Reading, b: Reading, alignment: Alignment, weights: Sequence[Sequence[float]], scale: float
    ) -> tuple[str, str]:
        first, second = (
            draw_track(
                self.sequence(one), residue_weights(one, own), self.bands(one), scale, diverging=True, outlined=changed
            )
            for one, own, changed in zip((a, b), weights, alignment.changed, strict=True)
        )
        return first, second

    def draw(self, reading: Reading, weights: Sequence[float], *, scale: float | None = None) -> str:
        return draw_track(self.sequence(reading), residue_weights(reading, weights), self.bands(reading), scale)

    def draw_elements(self, reading: Reading, weights: Mapping[int, float], look: Look = PLAIN) -> str:
        """A small one shows AROUND residues on either side of the largest weight."""
        sequence = self.sequence(reading)
        own = [weights.get(i, 0.0) for i in range(len(sequence))]
        if not look.small:
            more: dict[str, Any] = {"diverging": look.diverging, "hits": True, "tracks": look.tracks}
            return draw_track(sequence, own, self.bands(reading), look.scale, **more)
        end = max(map(abs, own)) if look.scale is None else look.scale
        first = max(0, max(range(len(own)), key=lambda i: abs(own[i])) - AROUND)
        cut = slice(first, first + 2 * AROUND + 1)
        return draw_track(sequence[cut], own[cut], [], end, diverging=look.diverging, first=first)

    def picture(self, reading: Reading) -> dict[str, Any]:
        """Residues and bands are numbered from 0, `end` is the residue after the last."""
        return {
            "kind": "track",
            "text": self.sequence(reading),
            "tokens": [[unit.text, list(unit.residues)] for unit in reading.units],
            "bands": [vars(band) for band in self.bands(reading)],
        }

    def sequence(self, reading: Reading) -> str:
        """The residues, without spaces."""
        return reading.parsed

    def bands(self, reading: Reading) -> list[Band]:
        """Named parts to show beside the sequence."""
        return []

    def _parse(self, text: str) -> Any:
        return residues(text)


def _numbered(where: range) -> str:
    return f"residue {where.start + 1}" if len(where) == 1 else f"residues {where.start + 1}–{where.stop}"


def residue_weights(reading: Reading, weights: Sequence[float]) -> list[float]:
    """Weights of tokens as weights of residues: each residue has that of its token.

    Raises InputError if there is not one weight per token."""
    if len(weights) != len(reading.elements):
        raise InputError(f"{len(weights)} weights for {len(reading.elements)} tokens: give one per token.")
    return [float(weight) for weight, covered in zip(weights, reading.elements, strict=True) for _ in covered]


PROTEIN = ProteinDomain()
