"""All concepts of molecules, laid on tokens.

Atom concepts are carried by atom tokens only: a token that writes several atoms carries what any of them has, and
every piece of a bracket carries what its atom has. What single atoms have makes one instance per token; what atoms
have together (a ring, a functional group) makes one instance of all their tokens. See docs/concepts.md.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from rdkit import Chem

from isotrace.base.errors import InputError
from isotrace.domains.domain import Concept, Labels
from isotrace.domains.molecule.atoms import ATOM_CONCEPTS, joint_atom_concepts, single_atom_concepts
from isotrace.domains.molecule.tokens import TokenUnit
from isotrace.domains.molecule.vocabulary.descriptors import SEQUENCE_CONCEPTS, descriptors
from isotrace.domains.molecule.vocabulary.syntax import SYNTAX_CONCEPTS, syntax_concepts

TOKEN_CONCEPTS: tuple[Concept, ...] = (*ATOM_CONCEPTS, *SYNTAX_CONCEPTS)
CONCEPTS: tuple[Concept, ...] = (*TOKEN_CONCEPTS, *SEQUENCE_CONCEPTS)

_PLACE = {concept.name: i for i, concept in enumerate(CONCEPTS)}


def label_molecule(text: str, units: Sequence[TokenUnit], mol: Chem.Mol) -> Labels:
    """Of `CONCEPTS`. `units` come from `token_map` and `mol` from `parse`, both of `text`.

    Raises InputError if the units speak of other atoms than `mol` has.
    """
    numbers = np.full(len(CONCEPTS), np.nan)
    numbers[len(TOKEN_CONCEPTS) :] = descriptors(mol)
    return Labels(tuple(placed(token_instances(text, units, mol), _PLACE)), numbers)


def placed(
    found: Iterable[tuple[str, tuple[int, ...]]], place: dict[str, int]
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Names replaced by their places in the list of concepts."""
    return ((place[name], tokens) for name, tokens in found)


def token_instances(text: str, units: Sequence[TokenUnit], mol: Chem.Mol) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, token positions, ascending) of every instance of `TOKEN_CONCEPTS`; see `label_molecule`."""
    writers = atom_tokens(units)
    if set(writers) != set(range(mol.GetNumAtoms())):
        raise InputError(f"the tokens and the molecule of {text!r} differ in atoms: map and parse the same SMILES.")
    of_atom = single_atom_concepts(mol)
    for position, unit in enumerate(units):
        if unit.kind == "atom":
            here = (position,)
            for name in dict.fromkeys(name for atom in unit.atoms for name in of_atom[atom]):
                yield name, here
    for name, atoms in joint_atom_concepts(mol):
        yield name, tokens_of(atoms, writers)
    yield from syntax_concepts(text, units)


def atom_tokens(units: Sequence[TokenUnit]) -> dict[int, list[int]]:
    """Positions of the tokens that write each atom, ascending."""
    writers: dict[int, list[int]] = {}
    for position, unit in enumerate(units):
        if unit.kind == "atom":
            for atom in unit.atoms:
                writers.setdefault(atom, []).append(position)
    return writers


def tokens_of(atoms: Iterable[int], writers: dict[int, list[int]]) -> tuple[int, ...]:
    """Positions of the tokens that write any of `atoms`, ascending, each once."""
    return tuple(sorted({position for atom in atoms for position in writers[atom]}))
