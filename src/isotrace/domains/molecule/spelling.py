"""Other ways to write the same molecule, with the map back to its atoms."""

import json
from dataclasses import dataclass

import numpy as np
from rdkit import Chem


@dataclass(frozen=True)
class Spelling:
    """`original[i]` is the index, in the molecule asked about, of the i-th atom written in `smiles`."""

    smiles: str
    original: tuple[int, ...]


def spellings(mol: Chem.Mol, n: int, seed: int) -> list[Spelling]:
    """Up to `n` distinct randomised SMILES of `mol`; fewer where the molecule has fewer spellings."""
    rng = np.random.default_rng(seed)
    found: dict[str, Spelling] = {}
    for _ in range(4 * n):
        order = rng.permutation(mol.GetNumAtoms()).tolist()
        shuffled = Chem.RenumberAtoms(mol, order)
        smiles = Chem.MolToSmiles(shuffled, canonical=False, rootedAtAtom=int(rng.integers(len(order))))
        written = json.loads(shuffled.GetProp("_smilesAtomOutputOrder"))
        found.setdefault(smiles, Spelling(smiles, tuple(order[i] for i in written)))
        if len(found) == n:
            break
    return list(found.values())
