"""Studies of models of reactions."""
