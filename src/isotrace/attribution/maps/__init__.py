"""Tracing maps: what each component carries, at which positions and in which layers, from a cause to an answer.

`pair`: clean and corrupt input; `recovery`: the map of one pair; `many`: of a file; `injection`: the representation of
the cause added to later layers. See docs/map.md.
"""
