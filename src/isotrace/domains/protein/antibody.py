"""The antibody domain: a protein whose variable domains carry IMGT numbers.

Every variable domain of a sequence is read: one of a VH, VL or VHH, both of an scFv. What lies outside them (linker,
constant domain, tag) is a concept of its own. A sequence without one is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isotrace.domains.domain import Concept, Group, Labels, Reading
from isotrace.domains.protein.clones import clone_groups
from isotrace.domains.protein.domain import ProteinDomain
from isotrace.domains.protein.drawing import Band
from isotrace.domains.protein.numbering import CHAINS, REGIONS, Antibody, VariableDomain, number
from isotrace.domains.protein.sequence import residues
from isotrace.domains.protein.vocabulary.concepts import CONCEPTS as PROTEIN_CONCEPTS
from isotrace.domains.protein.vocabulary.concepts import TokensOf

Instance = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Landmark:
    """A conserved IMGT position: the concept holds where the residue there is one of `letters`."""

    name: str
    position: int
    letters: str


# Lefranc et al. 2003, figure 3: the five that anchor the numbering.
LANDMARKS = (
    Landmark("1st-CYS 23", 23, "C"),
    Landmark("conserved Trp 41", 41, "W"),
    Landmark("hydrophobic 89", 89, "ACFILMVW"),
    Landmark("2nd-CYS 104", 104, "C"),
    Landmark("J-Trp or J-Phe 118", 118, "FW"),
)
_CDRS = ("CDR1", "CDR2", "CDR3")
_POSITIONS = range(1, 129)
_HALLMARK = ((42, "FY"), (49, "EQ"), (50, "RC"))

_OWN: tuple[Concept, ...] = (
    *(Concept(name, "region", "token") for name in (*REGIONS, "framework", "CDR", "outside the variable domain")),
    *(Concept(f"{name} {chain}", "region of a chain", "token") for name in _CDRS for chain in CHAINS.values()),
    *(Concept(mark.name, "conserved position", "token") for mark in LANDMARKS),
    *(Concept(f"IMGT {n}", "IMGT position", "token") for n in _POSITIONS),
    Concept("IMGT insertion", "IMGT position", "token"),
    *(Concept(f"{chain} chain", "chain type", "class") for chain in CHAINS.values()),
    Concept("two or more variable domains", "chain type", "class"),
    Concept("VHH hallmark residues", "chain type", "class"),
    *(Concept(f"{name} length", "CDR property", "value") for name in _CDRS),
    Concept("CDR3 net charge", "CDR property", "value"),
)
CONCEPTS = PROTEIN_CONCEPTS + _OWN
_INDEX = {concept.name: i for i, concept in enumerate(CONCEPTS)}


class AntibodyDomain(ProteinDomain):
    """As `ProteinDomain`, with `Reading.parsed` an `Antibody`. Reading raises InputError for what is not one."""

    name = "antibody"
    substructures = frozenset(REGIONS)

    @property
    def concepts(self) -> tuple[Concept, ...]:
        return CONCEPTS

    def label(self, reading: Reading) -> Labels:
        base = super().label(reading)
        antibody: Antibody = reading.parsed
        tokens = TokensOf(reading.units)
        own = tuple((_INDEX[name], tokens(where)) for name, where in _instances(antibody))
        numbers = np.full(len(CONCEPTS), np.nan)
        numbers[: len(base.numbers)] = base.numbers
        for name, value in _numbers(antibody).items():
            numbers[_INDEX[name]] = value
        return Labels(base.instances + own, numbers)

    def groups(self, texts: Sequence[str]) -> list[str]:
        """Clones; see `isotrace.domains.protein.clones`. Raises InputError for a text that is no antibody."""
        return clone_groups([self._parse(text) for text in texts])

    def names(self, reading: Reading) -> list[dict[str, Any]]:
        """Also `chain`, `imgt` (`111A`) and `region` of the residues of variable domains, None outside them."""
        found = [row | {"chain": None, "imgt": None, "region": None} for row in super().names(reading)]
        for domain in reading.parsed.domains:
            for place, (n, insertion) in zip(domain.residues, domain.positions, strict=True):
                found[place] |= {"chain": domain.chain, "imgt": f"{n}{insertion}"}
            for name in REGIONS:
                for place in domain.region(name):
                    found[place]["region"] = name
        return found

    def parts(self, reading: Reading) -> tuple[Group, ...]:
        """The regions of every variable domain, and what lies before, between and behind them."""
        domains, n = reading.parsed.domains, len(reading.parsed.sequence)
        several = len(domains) > 1
        own = [
            (f"{name} {domain.chain} {i}" if several else name, domain.region(name))
            for i, domain in enumerate(domains, 1)
            for name in REGIONS
        ]
        ends = [0, *(end for d in domains for end in (d.residues.start, d.residues.stop)), n]
        outside = [range(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True)]
        own += [(f"outside, residues {where.start + 1}–{where.stop}", where) for where in outside]
        found = [Group(name, tuple(where)) for name, where in own if where]
        return tuple(sorted(found, key=lambda group: group.elements))

    def sequence(self, reading: Reading) -> str:
        return reading.parsed.sequence

    def bands(self, reading: Reading) -> list[Band]:
        return [
            Band(name, where.start, where.stop, "CDR" if name in _CDRS else "framework")
            for domain in reading.parsed.domains
            for name in REGIONS
            if (where := domain.region(name))
        ]

    def _parse(self, text: str) -> Antibody:
        return number(residues(text))


def _instances(antibody: Antibody) -> Iterator[Instance]:
    outside = set(range(len(antibody.sequence)))
    for domain in antibody.domains:
        outside -= set(domain.residues)
        for name in REGIONS:
            if where := tuple(domain.region(name)):
                yield name, where
                yield "CDR" if name in _CDRS else "framework", where
                if name in _CDRS:
                    yield f"{name} {domain.chain}", where
        for mark in LANDMARKS:
            place = domain.at(mark.position)
            if place is not None and antibody.sequence[place] in mark.letters:
                yield mark.name, (place,)
        for place, (n, insertion) in zip(domain.residues, domain.positions, strict=True):
            yield "IMGT insertion" if insertion else f"IMGT {n}", (place,)
    for place in sorted(outside):
        yield "outside the variable domain", (place,)


def _numbers(antibody: Antibody) -> dict[str, float]:
    main = antibody.main
    cdr3 = "".join(antibody.sequence[i] for i in main.region("CDR3"))
    return {
        **{f"{chain} chain": any(d.chain == chain for d in antibody.domains) for chain in CHAINS.values()},
        "two or more variable domains": len(antibody.domains) > 1,
        "VHH hallmark residues": _is_vhh(antibody.sequence, main),
        **{f"{name} length": float(len(main.region(name))) for name in _CDRS},
        "CDR3 net charge": float(sum(cdr3.count(a) for a in "KR") - sum(cdr3.count(a) for a in "DE")),
    }


def _is_vhh(sequence: str, domain: VariableDomain) -> bool:
    """At least two of the three hallmarks of camelid heavy-chain antibodies (Muyldermans et al. 1994)."""
    places = [(domain.at(n), letters) for n, letters in _HALLMARK]
    held = sum(place is not None and sequence[place] in letters for place, letters in places)
    return domain.chain == "heavy" and held >= 2


ANTIBODY = AntibodyDomain()
