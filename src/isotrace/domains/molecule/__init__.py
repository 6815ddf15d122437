"""Molecules written as SMILES: lexing, tokens, atoms, concepts, drawing."""

from isotrace.domains.molecule.tokens import TokenUnit, begin, bond_of, parse, parse_or_begin, token_map

__all__ = ["TokenUnit", "begin", "bond_of", "parse", "parse_or_begin", "token_map"]
