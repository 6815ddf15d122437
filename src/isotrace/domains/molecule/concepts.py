"""Concepts a SMILES token can carry: chemistry of its atoms, and its place in the SMILES syntax.

Atom concepts are tested on the RDKit molecule and carried by atom tokens only (a token that writes several atoms
carries what any of them has; every piece of a bracket carries what its atom has). Syntax concepts are tested on
the characters a token covers, so a masked token keeps the concepts of what it replaced.
Aromaticity is RDKit's: the carbonyl of a 2-pyridone or coumarin is aromatic, so no lactam or lactone.
Degrees and hydrogen counts do not depend on whether hydrogens are written as atoms.
"""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files

import numpy as np
from rdkit import Chem
from scipy import sparse

from isotrace.domains.molecule.tokens import TokenUnit
from isotrace.errors import InputError


@dataclass(frozen=True)
class Concept:
    """A named yes-or-no property of a token; `group` says of what kind."""

    name: str
    group: str


@dataclass(frozen=True)
class Site:
    """One token and what syntax concepts may look at: all `units`, the covered `texts`, ring and branch atoms."""

    i: int
    units: Sequence[TokenUnit]
    texts: Sequence[str]
    bracketed: Sequence[bool]
    ring_atoms: frozenset[int]
    branch_atoms: frozenset[int]
    real: range  # positions from the first to the last token that is not special

    @property
    def unit(self) -> TokenUnit:
        return self.units[self.i]

    @property
    def text(self) -> str:
        return self.texts[self.i]

    def is_text(self, text: str) -> bool:
        return self.unit.kind != "atom" and self.text == text

    def bears(self, atoms: frozenset[int]) -> bool:
        return self.unit.kind == "atom" and not atoms.isdisjoint(self.unit.atoms)

    def after_branch(self) -> bool:
        """An atom whose token follows a closing parenthesis, bond symbols between them ignored."""
        before = self.i - 1
        while before in self.real and self.units[before].kind == "bond":
            before -= 1
        return self.unit.kind == "atom" and before in self.real and self.texts[before].endswith(")")

    def beside_ring_digit(self) -> bool:
        return self.i in self.real and any(
            j in self.real and self.units[j].kind == "ring" for j in (self.i - 1, self.i + 1)
        )

    def ring_label(self) -> str | None:
        return self.text.strip("%()").lstrip("0") or "0" if self.unit.kind == "ring" else None

    def paired(self, kind: str, forwards: bool) -> bool:
        partner = self.unit.partner
        return self.unit.kind == kind and partner is not None and (partner > self.i) == forwards


ELEMENTS = ("C", "N", "O", "F", "S", "Cl", "Br", "I", "P", "B", "Si", "Se", "H")
HYBRIDISATION = {
    "sp": Chem.HybridizationType.SP,
    "sp2": Chem.HybridizationType.SP2,
    "sp3": Chem.HybridizationType.SP3,
}
BOND_NAMES = {"=": "double", "#": "triple", "-": "single", "/": "up", "\\": "down"}

_AtomTest = Callable[[Chem.Atom], bool]
_SiteTest = Callable[[Site], bool]


def _ring_sizes(atom: Chem.Atom) -> tuple[int, ...]:
    return tuple(atom.GetOwningMol().GetRingInfo().AtomRingSizes(atom.GetIdx()))


def _heavy_degree(atom: Chem.Atom) -> int:
    return sum(other.GetAtomicNum() != 1 for other in atom.GetNeighbors())


_ATOM: tuple[tuple[str, str, _AtomTest], ...] = (
    *((f"element {e}", "element", lambda a, e=e: a.GetSymbol() == e) for e in ELEMENTS),
    ("other element", "element", lambda a: a.GetSymbol() not in ELEMENTS),
    ("aromatic atom", "aromaticity", lambda a: a.GetIsAromatic()),
    *(
        (f"aromatic {e}", "aromaticity", lambda a, e=e: a.GetIsAromatic() and a.GetSymbol() == e)
        for e in ("C", "N", "O", "S")
    ),
    ("aliphatic ring atom", "ring", lambda a: a.IsInRing() and not a.GetIsAromatic()),
    *((f"{n}-membered ring", "ring", lambda a, n=n: n in _ring_sizes(a)) for n in range(3, 8)),
    ("ring of 8 or more atoms", "ring", lambda a: any(n >= 8 for n in _ring_sizes(a))),
    ("atom in several rings", "ring", lambda a: len(_ring_sizes(a)) >= 2),
    ("non-ring atom", "ring", lambda a: not a.IsInRing()),
    ("positive charge", "charge", lambda a: a.GetFormalCharge() > 0),
    ("negative charge", "charge", lambda a: a.GetFormalCharge() < 0),
    ("chiral centre", "chirality", lambda a: a.GetChiralTag() != Chem.ChiralType.CHI_UNSPECIFIED),
    *((n, "hybridisation", lambda a, h=h: a.GetHybridization() == h) for n, h in HYBRIDISATION.items()),
    *((f"hydrogen count {n}", "hydrogens", lambda a, n=n: a.GetTotalNumHs(True) == n) for n in range(4)),
    *((f"degree {n}", "degree", lambda a, n=n: _heavy_degree(a) == n) for n in range(1, 5)),
)

_SYNTAX: tuple[tuple[str, str, _SiteTest], ...] = (
    *((f"{name} bond symbol", "bond symbol", lambda s, b=b: s.is_text(b)) for b, name in BOND_NAMES.items()),
    ("branch opening", "branch", lambda s: s.paired("branch", forwards=True)),
    ("branch closing", "branch", lambda s: s.paired("branch", forwards=False)),
    *((f"branch depth {n}", "branch", lambda s, n=n: s.unit.depth == n) for n in (1, 2)),
    ("branch depth 3 or more", "branch", lambda s: s.unit.depth >= 3),
    ("atom bearing a branch", "branch", lambda s: s.bears(s.branch_atoms)),
    ("atom after a branch", "branch", lambda s: s.after_branch()),
    ("ring opening", "ring digit", lambda s: s.paired("ring", forwards=True)),
    ("ring closing", "ring digit", lambda s: s.paired("ring", forwards=False)),
    *((f"ring digit {n}", "ring digit", lambda s, n=n: s.ring_label() == str(n)) for n in range(1, 7)),
    ("atom bearing a ring digit", "ring digit", lambda s: s.bears(s.ring_atoms)),
    ("token beside a ring digit", "ring digit", lambda s: s.beside_ring_digit()),
    ("dot", "syntax", lambda s: s.unit.kind == "dot"),
    ("bracket atom", "syntax", lambda s: s.bracketed[s.i]),
    ("first token", "position", lambda s: bool(s.real) and s.i == s.real[0]),
    ("last token", "position", lambda s: bool(s.real) and s.i == s.real[-1]),
    ("special token at the start", "position", lambda s: s.unit.kind == "special" and s.i < s.real.start),
    ("special token at the end", "position", lambda s: s.unit.kind == "special" and s.i >= s.real.stop),
)


def _functional_groups() -> dict[str, Chem.Mol]:
    text = (files("isotrace.domains.molecule") / "functional_groups.csv").read_text(encoding="utf-8")
    return {row["name"]: Chem.MolFromSmarts(row["smarts"]) for row in csv.DictReader(text.splitlines())}


FUNCTIONAL_GROUPS = _functional_groups()
CONCEPTS: tuple[Concept, ...] = (
    *(Concept(name, group) for name, group, _ in _ATOM),
    *(Concept(name, "functional group") for name in FUNCTIONAL_GROUPS),
    *(Concept(name, group) for name, group, _ in _SYNTAX),
)


def atom_concepts(mol: Chem.Mol) -> np.ndarray:
    """Bool `[atoms, element … functional group concepts]`, in the order of `CONCEPTS`."""
    basic = np.array([[test(atom) for _, _, test in _ATOM] for atom in mol.GetAtoms()], dtype=bool)
    groups = np.zeros((mol.GetNumAtoms(), len(FUNCTIONAL_GROUPS)), dtype=bool)
    for column, pattern in enumerate(FUNCTIONAL_GROUPS.values()):
        for match in mol.GetSubstructMatches(pattern):
            groups[list(match), column] = True
    return np.hstack([basic, groups])


def concept_matrix(smiles: str, units: Sequence[TokenUnit], mol: Chem.Mol) -> sparse.csr_matrix:
    """Bool CSR `[tokens, len(CONCEPTS)]` of the tokens `units` of `smiles`, whose molecule is `mol`.

    `units` come from `token_map` and `mol` from `parse`, both of the same `smiles`. Raises InputError if the
    units speak of other atoms than `mol` has.
    """
    written = {atom for unit in units if unit.kind == "atom" for atom in unit.atoms}
    if written != set(range(mol.GetNumAtoms())):
        raise InputError(f"the tokens and the molecule of {smiles!r} differ in atoms: map and parse the same SMILES.")
    real = [i for i, unit in enumerate(units) if unit.kind != "special"]
    open_bracket = [smiles.rfind("[", 0, u.start + 1) > smiles.rfind("]", 0, u.start) for u in units]
    context = Site(
        i=0,
        units=units,
        texts=[smiles[unit.start : unit.end] for unit in units],
        bracketed=[unit.kind == "atom" and inside for unit, inside in zip(units, open_bracket, strict=True)],
        ring_atoms=frozenset(a for u in units if u.kind == "ring" for a in u.atoms),
        branch_atoms=frozenset(a for u in units if u.kind == "branch" for a in u.atoms),
        real=range(real[0], real[-1] + 1),
    )
    of_atoms = atom_concepts(mol)
    result = np.zeros((len(units), len(CONCEPTS)), dtype=bool)
    for i, unit in enumerate(units):
        if unit.kind == "atom":
            result[i, : of_atoms.shape[1]] = of_atoms[list(unit.atoms)].any(axis=0)
        site = replace(context, i=i)
        result[i, of_atoms.shape[1] :] = [test(site) for _, _, test in _SYNTAX]
    return sparse.csr_matrix(result)
