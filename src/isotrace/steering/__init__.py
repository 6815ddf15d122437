"""Steering: what is done to a subject's hidden states, how strongly, and what comes of it. See docs/steering.md."""

from isotrace.steering.edits import Calibrated, Edits
from isotrace.steering.kinds import EDITS, AddEdit, Edit, RemoveEdit, SetEdit, SwapEdit, covariance
from isotrace.steering.paths import PathEdit
from isotrace.steering.units import AffineEdit, FeatureEdit, GainEdit, InputEdit

__all__ = [
    "EDITS", "AddEdit", "AffineEdit", "Calibrated", "Edit", "Edits", "FeatureEdit", "GainEdit", "InputEdit",
    "PathEdit", "RemoveEdit", "SetEdit", "SwapEdit", "covariance",
]  # fmt: skip
