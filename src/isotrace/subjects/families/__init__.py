"""One declarative entry per architecture family: where its hookpoints are and how norms and head are built.

A new family is one `Family` plus passing `tests/subjects/test_conformance.py`; docs/bring-your-own-model.md shows how.
"""

from isotrace.subjects.families.family import (
    FAMILIES,
    LAYER_NORM,
    RMS_NORM,
    Family,
    HeadPaths,
    Native,
    NormKind,
    Objective,
    Side,
    Stack,
    family_of,
    objective_of,
    register,
)

__all__ = [
    "FAMILIES", "LAYER_NORM", "RMS_NORM", "Family", "HeadPaths", "Native", "NormKind", "Objective", "Side", "Stack",
    "family_of", "objective_of", "register",
]  # fmt: skip
