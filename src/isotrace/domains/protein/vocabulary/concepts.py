"""Concepts of a protein that its sequence alone decides.

Residues and their classes have one instance per token; motifs, stretches and clusters one instance per place where
they stand. A token that merges several residues carries what any of them has.
"""

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from isotrace.domains.domain import Concept
from isotrace.domains.protein.sequence import LETTERS, STANDARD, ResidueUnit
from isotrace.domains.protein.vocabulary.motifs import known_motifs, matches
from isotrace.domains.protein.vocabulary.properties import (
    HYDROPATHY,
    helix_moments,
    stretches,
    values,
    window_entropies,
    window_means,
)

Instance = tuple[int, tuple[int, ...]]

# Hydropathy, volume, charge and chemistry: the IMGT classes (Pommié et al. 2004), with aromatic and β-branched added.
CLASSES = {
    "hydrophobic residue": "ACFILMVW",
    "neutral residue": "GHPSTY",
    "hydrophilic residue": "RNDQEK",
    "polar residue": "RNDQEHKSTY",
    "positive residue": "RHK",
    "negative residue": "DE",
    "charged residue": "RHKDE",
    "tiny residue": "AGS",
    "small residue": "CDNPT",
    "medium residue": "EQHV",
    "large residue": "ILMKR",
    "very large residue": "FWY",
    "aliphatic residue": "AILV",
    "β-branched residue": "ITV",
    "aromatic residue": "FHWY",
    "hydroxyl residue": "ST",
    "sulfur residue": "CM",
    "amide residue": "NQ",
    "proline or glycine": "PG",
    "uncertain residue": "BZX",
    "rare residue": "UO",
}
_RUN = re.compile(r"([A-WYZ])\1{3,}")
_WINDOW, _HYDROPHOBIC = 15, 1.6
_MEMBRANE_WINDOW = 19  # Kyte and Doolittle 1982: a mean above 1.6 over 19 residues spans the membrane
_ENTROPY_WINDOW, _ENTROPY = 12, 2.2  # the trigger of SEG (Wootton and Federhen 1993)
_MOMENT_WINDOW, _MOMENT = 11, 0.65  # see docs/concepts.md for how often chance reaches it
_CLUSTER_WINDOW, _CLUSTER = 5, 4


def _cluster(sequence: str, letters: str) -> list[range]:
    charged = window_means(sequence, {a: float(a in letters) for a in HYDROPATHY}, _CLUSTER_WINDOW)
    return stretches(charged * _CLUSTER_WINDOW > _CLUSTER - 0.5, _CLUSTER_WINDOW)


# Stretches: name → the residues of each.
_STRETCHES: dict[str, Callable[[str], list[range]]] = {
    "homopolymer run": lambda s: [range(*found.span()) for found in _RUN.finditer(s)],
    "low-complexity stretch": lambda s: stretches(window_entropies(s, _ENTROPY_WINDOW) <= _ENTROPY, _ENTROPY_WINDOW),
    "hydrophobic stretch": lambda s: stretches(window_means(s, HYDROPATHY, _WINDOW) > _HYDROPHOBIC, _WINDOW),
    "amphipathic helix-like stretch": lambda s: stretches(helix_moments(s, _MOMENT_WINDOW) >= _MOMENT, _MOMENT_WINDOW),
    "positive cluster": lambda s: _cluster(s, "KR"),
    "negative cluster": lambda s: _cluster(s, "DE"),
}
_ENDS: dict[str, Callable[[int], range]] = {
    "first residue": lambda n: range(1),
    "last residue": lambda n: range(n - 1, n),
    "first 10 residues": lambda n: range(min(10, n)),
    "last 10 residues": lambda n: range(max(0, n - 10), n),
}
_SPECIAL = ("special token at the start", "special token at the end")
_MOTIFS = known_motifs()
_KINDS: dict[str, Callable[[str], bool]] = {
    "starts with methionine": lambda s: s.startswith("M"),
    "two or more cysteines": lambda s: s.count("C") >= 2,
    "membrane-spanning stretch": lambda s: bool((window_means(s, HYDROPATHY, _MEMBRANE_WINDOW) > _HYDROPHOBIC).any()),
}

CONCEPTS: tuple[Concept, ...] = (
    *(Concept(f"residue {letter}", "residue", "token") for letter in STANDARD),
    *(Concept(name, "residue class", "token") for name in CLASSES),
    *(Concept(name, "motif", "token") for name in _MOTIFS),
    *(Concept(name, "stretch", "token") for name in _STRETCHES),
    *(Concept(name, "position", "token") for name in (*_ENDS, *_SPECIAL)),
    *(Concept(name, "sequence class", "class") for name in _KINDS),
    *(Concept(name, "sequence property", "value") for name in values("A")),
)
_INDEX = {concept.name: i for i, concept in enumerate(CONCEPTS)}
_OF_LETTER = {
    letter: frozenset(
        _INDEX[name]
        for name in (f"residue {letter}", *(n for n, of in CLASSES.items() if letter in of))
        if name in _INDEX
    )
    for letter in LETTERS
}


def instances(sequence: str, units: Sequence[ResidueUnit]) -> Iterator[Instance]:
    """(index in `CONCEPTS`, token positions) of everything `sequence` carries."""
    for position, unit in enumerate(units):
        carried = frozenset().union(*(_OF_LETTER[sequence[r]] for r in unit.residues))
        for concept in sorted(carried):
            yield concept, (position,)
    tokens = TokensOf(units)
    for name, pattern in _MOTIFS.items():
        for found in matches("prosite", pattern, sequence):
            yield _INDEX[name], tokens(found)
    for name, find in _STRETCHES.items():
        for found in find(sequence):
            yield _INDEX[name], tokens(found)
    for name, where in _ENDS.items():
        # One instance per token: the first ten residues are ten places, not one thing.
        for token in tokens(where(len(sequence))):
            yield _INDEX[name], (token,)
    for position, unit in enumerate(units):
        if not unit.residues and position < tokens.first:
            yield _INDEX[_SPECIAL[0]], (position,)
        elif not unit.residues and position > tokens.last:
            yield _INDEX[_SPECIAL[1]], (position,)


def numbers(sequence: str) -> np.ndarray:
    """float64 `[concepts]`: classes as 0 or 1, values, NaN for token concepts."""
    found = np.full(len(CONCEPTS), np.nan)
    for name, test in _KINDS.items():
        found[_INDEX[name]] = test(sequence)
    for name, value in values(sequence).items():
        found[_INDEX[name]] = value
    return found


class TokensOf:
    """Residue numbers → the tokens that cover them, ascending, each once. `first`, `last`: tokens with residues."""

    def __init__(self, units: Sequence[ResidueUnit]):
        self._of = [position for position, unit in enumerate(units) for _ in unit.residues]
        self.first, self.last = self._of[0], self._of[-1]

    def __call__(self, residues: Sequence[int] | range) -> tuple[int, ...]:
        return tuple(dict.fromkeys(self._of[r] for r in residues))
