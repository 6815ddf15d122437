"""Matched pairs: molecules that are the same but for what hangs on one bond (Hussain & Rea 2010)."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

LARGEST = 6
"""Heavy atoms of a substituent."""


@dataclass(frozen=True)
class Half:
    """One molecule of a pair: its row, the atoms of the core in the order of the core's canonical SMILES, and those of
    the substituent."""

    row: int
    core: tuple[int, ...]
    changed: tuple[int, ...]


@dataclass(frozen=True)
class Pair:
    first: Half
    second: Half


def cuts(mol: Chem.Mol) -> list[tuple[str, str, tuple[int, ...], tuple[int, ...]]]:
    """(SMILES of the core, SMILES of the substituent, atoms of the core, atoms of the substituent) of every acyclic
    single bond with at most `LARGEST` atoms on the smaller side."""
    found = []
    for bond in mol.GetBonds():
        if bond.GetBondType() != Chem.BondType.SINGLE or bond.IsInRing():
            continue
        pieces, atoms = [], []
        parts = Chem.GetMolFrags(
            Chem.FragmentOnBonds(mol, [bond.GetIdx()], dummyLabels=[(0, 0)]), asMols=True, fragsMolAtomMapping=atoms
        )
        for part, own in zip(parts, atoms, strict=True):
            smiles = Chem.MolToSmiles(part)
            order = json.loads(part.GetProp("_smilesAtomOutputOrder"))
            written = tuple(own[i] for i in order if own[i] < mol.GetNumAtoms())
            pieces.append((smiles, written))
        (small, changed), (core, kept) = sorted(pieces, key=lambda piece: len(piece[1]))
        if len(changed) <= LARGEST and len(changed) < len(kept):
            found.append((core, small, kept, changed))
    return found


def matched_pairs(mols: Sequence[Chem.Mol], n: int, seed: int) -> list[Pair]:
    """Up to `n` pairs at random, each molecule in one at most."""
    cores: dict[str, dict[str, Half]] = defaultdict(dict)
    for row, mol in enumerate(mols):
        for core, small, kept, changed in cuts(mol):
            cores[core].setdefault(small, Half(row, kept, changed))
    rng, used, found = np.random.default_rng(seed), set(), []
    several = [list(halves.values()) for halves in cores.values() if len(halves) > 1]
    for place in rng.permutation(len(several)):
        halves = [half for half in several[place] if half.row not in used]
        if len({half.row for half in halves}) < 2:
            continue
        first, second = (halves[i] for i in rng.permutation(len(halves))[:2])
        if first.row == second.row:
            continue
        used |= {first.row, second.row}
        found.append(Pair(first, second))
        if len(found) == n:
            break
    return found
