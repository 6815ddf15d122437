"""Do the numbers of a trace mean something: effects of single nodes, and circuits; see `node_effects`, `circuits`."""
