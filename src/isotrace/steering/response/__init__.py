"""How a subject responds to an edit: what it undoes, and whether it shows."""
