"""SMARTS libraries: functional groups and structural alerts, matched with a fingerprint screen in front."""

from collections.abc import Iterable
from functools import cache

import numpy as np
from rdkit import Chem, DataStructs, rdBase

from isotrace.base.errors import InputError
from isotrace.base.files import shipped_rows

_BITS = 2048
# RDKit's own limit of 1,000, symmetric copies counted, would silently leave some out in a large molecule.
_MAX_MATCHES = 100_000


class Patterns:
    """Compiled SMARTS by name. A pattern is only searched in molecules whose pattern fingerprint holds all its bits."""

    def __init__(self, smarts: Iterable[tuple[str, str]]):
        """`smarts`: (name, SMARTS). Raises InputError for a SMARTS that RDKit cannot compile.

        Hydrogens written as atoms of the pattern become hydrogen counts of their neighbours."""
        queries = {name: Chem.MergeQueryHs(compiled(text)) for name, text in smarts}
        self.names = tuple(queries)
        self.queries = tuple(queries.values())
        self._bits = np.stack([_fingerprint(query) for query in self.queries])

    def matches(self, mol: Chem.Mol) -> list[tuple[str, tuple[int, ...]]]:
        """(name, atoms) of every match, matches of the same atoms counted once."""
        lacking = np.bitwise_and(self._bits, ~_fingerprint(mol)).any(axis=1)
        return [
            (self.names[i], match)
            for i in np.flatnonzero(~lacking).tolist()
            for match in mol.GetSubstructMatches(self.queries[i], maxMatches=_MAX_MATCHES)
        ]


@cache
def compiled(smarts: str) -> Chem.Mol:
    """Raises InputError for a SMARTS that RDKit cannot compile."""
    with rdBase.BlockLogs():
        query = Chem.MolFromSmarts(smarts)
    if query is None or not query.GetNumAtoms():
        raise InputError(f"{smarts!r} is no SMARTS that RDKit can compile: correct the pattern.")
    return query


def atoms_matching(query: Chem.Mol, mol: Chem.Mol) -> list[tuple[int, ...]]:
    """Atoms of every match of `query`, matches of the same atoms counted once."""
    return [tuple(match) for match in mol.GetSubstructMatches(query, maxMatches=_MAX_MATCHES)]


@cache
def functional_groups() -> Patterns:
    return _shipped("functional_groups.csv")


@cache
def structural_alerts() -> Patterns:
    """Of alerts.csv, which scripts/build_concepts.py writes; its origin and licences are in alerts.md."""
    return _shipped("alerts.csv")


def _shipped(name: str) -> Patterns:
    rows = shipped_rows("isotrace.domains.molecule.vocabulary", name)
    return Patterns((row["name"], row["smarts"]) for row in rows)


def _fingerprint(mol: Chem.Mol) -> np.ndarray:
    """uint64 `[_BITS / 64]`."""
    mol.UpdatePropertyCache(strict=False)
    bits = DataStructs.BitVectToBinaryText(Chem.PatternFingerprint(mol, _BITS))
    return np.frombuffer(bits, dtype=np.uint64)
