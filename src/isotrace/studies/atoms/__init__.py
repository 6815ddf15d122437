"""Are the atoms of a picture the right ones: scores of atoms against known truths; see `atom_truth`."""
