"""Reactions written as SMILES: sides, components, atom maps, the reacting centre, drawing."""
