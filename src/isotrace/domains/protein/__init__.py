"""Proteins and antibodies written in one-letter code: tokens, residues, concepts, clusters, drawing."""

from isotrace.domains.protein.sequence import ResidueUnit, residue_map, residues

__all__ = ["ResidueUnit", "residue_map", "residues"]
