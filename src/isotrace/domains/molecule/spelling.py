"""Other ways to write the same molecule, with the map back to its atoms."""

import json
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from isotrace.base.errors import InputError


@dataclass(frozen=True)
class Spelling:
    """`original[i]` is the index, in the molecule asked about, of the i-th atom written in `smiles`."""

    smiles: str
    original: tuple[int, ...]


def write(mol: Chem.Mol) -> Spelling:
    """A molecule as canonical SMILES, which do not depend on how its atoms are numbered, with their numbers.

    Raises InputError for no molecule, and for hydrogens that SMILES do not write.
    """
    if not mol.GetNumAtoms():
        raise InputError("the molecule has no atoms: give one that has.")
    copy = Chem.Mol(mol)
    smiles = Chem.MolToSmiles(copy)
    original = tuple(json.loads(copy.GetProp("_smilesAtomOutputOrder")))
    if (read := Chem.MolFromSmiles(smiles)) is not None and read.GetNumAtoms() < len(original):
        raise InputError(
            "the molecule has hydrogen atoms of its own, which SMILES do not keep: give Chem.RemoveHs(mol)."
        )
    return Spelling(smiles, original)


def spellings(mol: Chem.Mol, n: int, seed: int) -> list[Spelling]:
    """Up to `n` distinct randomised SMILES of `mol`; fewer where the molecule has fewer spellings."""
    rng = np.random.default_rng(seed)
    parts = fragments(mol)
    found: dict[str, Spelling] = {}
    for _ in range(4 * n):
        order = rng.permutation(len(parts)) if len(parts) > 1 else range(len(parts))
        written = [respelled(*parts[i], rng) for i in order]
        smiles = ".".join(part.smiles for part in written)
        found.setdefault(smiles, Spelling(smiles, tuple(atom for part in written for atom in part.original)))
        if len(found) == n:
            break
    return list(found.values())


def fragments(mol: Chem.Mol) -> list[tuple[Chem.Mol, tuple[int, ...]]]:
    """Every connected part with the indices of its atoms in `mol`, in order of their first atoms."""
    atoms: list[tuple[int, ...]] = []
    parts = Chem.GetMolFrags(mol, asMols=True, sanitizeFrags=False, fragsMolAtomMapping=atoms)
    return sorted(zip(parts, map(tuple, atoms), strict=True), key=lambda part: part[1][0])


def respelled(part: Chem.Mol, atoms: tuple[int, ...], rng: np.random.Generator) -> Spelling:
    """One randomised SMILES of a connected part whose atoms are `atoms` of the whole."""
    order = rng.permutation(part.GetNumAtoms()).tolist()
    shuffled = Chem.RenumberAtoms(part, order)
    smiles = Chem.MolToSmiles(shuffled, canonical=False, rootedAtAtom=int(rng.integers(len(order))))
    written = json.loads(shuffled.GetProp("_smilesAtomOutputOrder"))
    return Spelling(smiles, tuple(atoms[order[i]] for i in written))
