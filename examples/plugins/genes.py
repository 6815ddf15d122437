"""A domain of one's own: cells as genes in the order of their expression (rank-value encoding), most expressed first.

    isotrace --plugin examples/plugins/genes.py trace SUBJECT DICTIONARY "LYZ CD14 …" --target mask:3 --domain gene

A sequence is gene symbols, blanks between them; an element is a gene. See docs/a-third-domain.md.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Any
from zlib import crc32

import numpy as np

from isotrace.base.errors import InputError
from isotrace.domains.alignment import SHARED, Alignment, with_special
from isotrace.domains.domain import (
    DOMAINS,
    PLAIN,
    Concept,
    Group,
    Labels,
    Look,
    Reading,
    Spelling,
    regular_expression,
)
from isotrace.report.page import colour

# Markers of blood cells that every textbook of single-cell analysis names.
MARKERS = {
    "T cell": {"CD3D", "CD3E", "CD3G", "IL7R", "CD2"},
    "B cell": {"MS4A1", "CD79A", "CD79B", "CD19"},
    "monocyte": {"CD14", "LYZ", "S100A8", "S100A9", "FCN1"},
    "NK cell": {"GNLY", "NKG7", "KLRD1", "PRF1"},
}
FAMILIES = {"mitochondrial": r"MT-", "ribosomal": r"RP[SL]\d"}
CONCEPTS = (
    *(Concept(f"marker of a {name}", "marker", "token") for name in MARKERS),
    *(Concept(f"{name} gene", "family", "token") for name in FAMILIES),
    Concept("special token", "syntax", "token"),
    Concept("number of genes", "size", "value"),
)
LONGEST, WINDOW, ROW, WIDTH, HEIGHT = 256, 10, 8, 86, 22


@dataclass(frozen=True)
class GeneUnit:
    """One token: the gene it stands for, none for a special one."""

    text: str
    kind: str
    start: int
    end: int
    about: tuple[int, ...]


def genes(text: str) -> list[re.Match[str]]:
    """Raises InputError for an empty text, a word that is no symbol, a gene that comes twice, and too many."""
    found = list(re.finditer(r"\S+", text))
    if not found:
        raise InputError("the cell is empty: give gene symbols, the most expressed first.")
    if len(found) > LONGEST:
        raise InputError(f"{len(found)} genes: cut the cell at {LONGEST}.")
    seen: set[str] = set()
    for one in found:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.\-]*", one[0]):
            raise InputError(f"{one[0]!r} is no gene symbol: use letters, digits, - and .")
        if one[0] in seen:
            raise InputError(f"gene {one[0]} comes twice: a cell ranks every gene once.")
        seen.add(one[0])
    return found


class Gene:
    """See `isotrace.domains.domain.Domain`. `Reading.parsed` is the list of symbols."""

    name, element, field = "gene", "gene", "biology"
    concepts = CONCEPTS
    substructures: frozenset[str] = frozenset()
    syntax = frozenset({"special token"})
    fingerprint = "reciprocal ranks of genes, hashed to 512"

    def read(
        self, text: str, tokens: Sequence[str], offsets: Sequence[tuple[int, int]], *, begun: bool = False
    ) -> Reading:
        found = genes(text)
        place = {one.span(): i for i, one in enumerate(found)}
        if [span for span in offsets if span[0] < span[1]] != list(place):
            raise InputError("the tokens are not the genes: give a tokenizer with one token per symbol.")
        units = []
        for token, (start, end) in zip(tokens, offsets, strict=True):
            about = (place[start, end],) if start < end else ()
            units.append(GeneUnit(token, "gene" if about else "special", start, end, about))
        return Reading(text, tuple(units), [one[0] for one in found], tuple(unit.about for unit in units))

    def begun(self, text: str, whole: str | None) -> str | None:
        self.check(text)

    def renumbered(self, reading: Reading, numbers: Sequence[int]) -> Reading:
        return reading

    def check(self, text: str) -> None:
        genes(text)

    def label(self, reading: Reading) -> Labels:
        found: list[tuple[int, tuple[int, ...]]] = []
        for position, unit in enumerate(reading.units):
            held = [unit.about and reading.parsed[unit.about[0]] in markers for markers in MARKERS.values()]
            held += [unit.about and re.match(way, reading.parsed[unit.about[0]]) for way in FAMILIES.values()]
            found += [(i, (position,)) for i, one in enumerate([*held, not unit.about]) if one]
        return Labels(tuple(found), np.asarray([np.nan] * (len(CONCEPTS) - 1) + [float(len(reading.parsed))]))

    def match(self, kind: str, pattern: str, reading: Reading) -> list[tuple[int, ...]]:
        if kind != "regex":
            raise InputError(f"the gene domain knows no patterns of kind {kind!r}: give regex.")
        way = regular_expression(pattern)
        return [(p,) for p, unit in enumerate(reading.units) if unit.about and way.fullmatch(unit.text)]

    def groups(self, texts: Sequence[str]) -> list[str]:
        """The three most expressed genes, in any order."""
        return [" ".join(sorted(one[0] for one in genes(text)[:3])) for text in texts]

    def same(self, text: str) -> str:
        return " ".join(one[0] for one in genes(text))

    def parent(self, text: str) -> str:
        return text

    def fingerprints(self, texts: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(texts), 512), dtype=np.float32)
        for row, text in zip(found, texts, strict=True):
            for rank, one in enumerate(genes(text), 1):
                row[crc32(one[0].encode()) % 512] += 1 / rank
        return found

    def complexity(self, text: str) -> float:
        return float("nan")

    def degenerate(self, text: str, start: str | None, floor: float | None) -> str | None:
        return None if len(genes(text)) == len({one[0] for one in genes(text)}) else "a gene that is there twice"

    def names(self, reading: Reading) -> list[dict[str, Any]]:
        return [{"symbol": gene, "name": gene, "number": rank} for rank, gene in enumerate(reading.parsed, 1)]

    def parts(self, reading: Reading) -> tuple[Group, ...]:
        ends = [*range(0, len(reading.parsed), WINDOW), len(reading.parsed)]
        return tuple(Group(f"ranks {a + 1} to {b}", tuple(range(a, b))) for a, b in pairwise(ends))

    def bonds(self, reading: Reading) -> np.ndarray:
        return np.zeros((0, 2), dtype=np.int64)

    def spellings(self, reading: Reading, n: int, seed: int) -> list[Spelling]:
        return []

    def align(self, a: Reading, b: Reading) -> Alignment:
        """Genes with themselves."""
        place = {gene: i for i, gene in enumerate(b.parsed)}
        token = {e: p for p, part in enumerate(b.elements) for e in part}
        partner = [token[place[a.parsed[e[0]]]] if e and a.parsed[e[0]] in place else None for e in a.elements]
        shared = set(a.parsed) & set(b.parsed)
        if len(shared) < SHARED or a.parsed == b.parsed:
            raise InputError(f"{len(shared)} genes in common: give two different cells that share at least {SHARED}.")
        changed = [frozenset(i for i, gene in enumerate(one.parsed) if gene not in shared) for one in (a, b)]
        return Alignment(with_special(a, b, partner), (changed[0], changed[1]), len(shared))

    def draw_pair(
        self, a: Reading, b: Reading, alignment: Alignment, weights: Sequence[Sequence[float]], scale: float
    ) -> tuple[str, str]:
        drawn = [
            boxes(one.parsed, dict(_elements(one, own)), scale, True) for one, own in zip((a, b), weights, strict=True)
        ]
        return drawn[0], drawn[1]

    def draw(self, reading: Reading, weights: Sequence[float], *, scale: float | None = None) -> str:
        return self.draw_elements(reading, dict(_elements(reading, weights)), Look(scale=scale))

    def draw_elements(self, reading: Reading, weights: Mapping[int, float], look: Look = PLAIN) -> str:
        end = max(map(abs, weights.values()), default=0.0) if look.scale is None else look.scale
        return boxes(reading.parsed[: 2 * ROW] if look.small else reading.parsed, weights, end, look.diverging)

    def picture(self, reading: Reading) -> dict[str, Any]:
        tokens = [[unit.text, list(unit.about)] for unit in reading.units]
        return {"kind": "track", "text": reading.text, "tokens": tokens, "bands": []}


def _elements(reading: Reading, weights: Sequence[float]) -> list[tuple[int, float]]:
    return [(e, float(weight)) for part, weight in zip(reading.elements, weights, strict=True) for e in part]


def boxes(symbols: Sequence[str], weights: Mapping[int, float], scale: float, diverging: bool) -> str:
    """SVG: a box per gene, by rank, in rows."""
    parts = []
    for i, gene in enumerate(symbols):
        x, y = i % ROW * WIDTH, i // ROW * HEIGHT
        fill = colour(weights.get(i, 0.0), scale, diverging=diverging)
        parts.append(f'<rect class="heat" x="{x}" y="{y}" width="{WIDTH - 4}" height="{HEIGHT - 4}" fill="{fill}"/>')
        parts.append(f'<text x="{x + WIDTH / 2 - 2:g}" y="{y + 13}">{escape(gene)}</text>')
        hit = f'class="hit" data-element="{i}" x="{x}" y="{y}" width="{WIDTH - 4}" height="{HEIGHT - 4}"'
        parts.append(f'<rect {hit} fill="transparent"/>')
    width, height = ROW * WIDTH, -(-len(symbols) // ROW) * HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="monospace" font-size="12" text-anchor="middle">{"".join(parts)}</svg>'
    )


GENE = DOMAINS.register("gene", Gene())
