"""IMGT numbering of antibody variable domains (Lefranc et al. 2003), by the library immunum."""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import import_module
from typing import Any

from isotrace.base.errors import InputError

# First and last IMGT position of each region.
REGIONS = {
    "FR1": (1, 26),
    "CDR1": (27, 38),
    "FR2": (39, 55),
    "CDR2": (56, 65),
    "FR3": (66, 104),
    "CDR3": (105, 117),
    "FR4": (118, 128),
}
CHAINS = {"H": "heavy", "K": "kappa", "L": "lambda"}
MIN_CONFIDENCE = 0.5  # immunum's own default: below it lie proteins that are no antibodies


@dataclass(frozen=True)
class VariableDomain:
    """One numbered domain: residues `start` … `start + len(positions) − 1` of the sequence, from 0.

    `positions[i]` is (IMGT number, insertion letter or "") of residue `start + i`. `confidence` in [0, 1] is the
    library's own score of the alignment.
    """

    chain: str
    confidence: float
    start: int
    positions: tuple[tuple[int, str], ...]

    @property
    def residues(self) -> range:
        return range(self.start, self.start + len(self.positions))

    def region(self, name: str) -> range:
        """Residues of a region of `REGIONS`, empty if the domain lacks it."""
        return self._regions[name]

    def at(self, number: int) -> int | None:
        """Residue at an IMGT position without insertion letter, None where the domain has none."""
        return self._places.get(number)

    @cached_property
    def _regions(self) -> dict[str, range]:
        numbers, found = [number for number, _ in self.positions], {}
        for name, (first, last) in REGIONS.items():
            begin, end = bisect_left(numbers, first), bisect_right(numbers, last)
            found[name] = range(self.start + begin, self.start + end)
        return found

    @cached_property
    def _places(self) -> dict[int, int]:
        return {number: i for i, (number, letter) in zip(self.residues, self.positions, strict=True) if not letter}


@dataclass(frozen=True)
class Antibody:
    """A sequence and its variable domains, in order: one for VH, VL and VHH, two for an scFv."""

    sequence: str
    domains: tuple[VariableDomain, ...]

    @property
    def main(self) -> VariableDomain:
        """The first heavy domain, or the first of all: what numbers and clones of the whole sequence refer to."""
        return next((d for d in self.domains if d.chain == "heavy"), self.domains[0])


def number(sequence: str) -> Antibody:
    """Numbers every variable domain of `sequence` (residues only).

    Raises InputError if immunum is missing, and, with its reason, if it finds no antibody domain.
    """
    found = _annotator().number_domains(sequence)
    if found[0].error:
        raise InputError(
            f"no antibody variable domain found: {found[0].error}; use the protein domain for other chains."
        )
    domains = tuple(_domain(sequence, result) for result in found)
    return Antibody(sequence, domains)


@cache
def _annotator() -> Any:
    try:
        immunum = import_module("immunum")
    except ImportError:
        raise InputError("immunum is not installed: pip install 'isotrace[antibody]' to number antibodies.") from None
    return immunum.Annotator(chains=["ig"], scheme="imgt", min_confidence=MIN_CONFIDENCE)


def _domain(sequence: str, result: Any) -> VariableDomain:
    positions = []
    for label in result.numbering:
        digits = label.rstrip("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
        positions.append((int(digits), label[len(digits) :]))
    start = result.query_start
    written = sequence[start : start + len(positions)]
    if written != "".join(result.numbering.values()):
        # Residue positions are inferred from the order of the numbering; a library that skips one must not pass.
        raise InputError("the numbering leaves out residues inside the domain: check the sequence for unusual letters.")
    return VariableDomain(CHAINS[result.chain], result.confidence, start, tuple(positions))
