"""Molecules written as SMILES: lexing, tokens, atoms, concepts, drawing."""

from isotrace.domains.molecule.tokens import TokenUnit, bond_of, parse, token_map

__all__ = ["TokenUnit", "bond_of", "parse", "token_map"]
