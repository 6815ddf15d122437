"""Steering: what is done to a subject's hidden states, how strongly, and what comes of it. See docs/steering.md."""

from isotrace.steering.edits import Calibrated, Edits
from isotrace.steering.kinds import EDITS, AddEdit, Edit, RemoveEdit, SetEdit
from isotrace.steering.paths import PathEdit
from isotrace.steering.units import AffineEdit, FeatureEdit, GainEdit, InputEdit
from isotrace.steering.vectors import covariance

__all__ = [
    "EDITS", "AddEdit", "AffineEdit", "Calibrated", "Edit", "Edits", "FeatureEdit", "GainEdit", "InputEdit",
    "PathEdit", "RemoveEdit", "SetEdit", "covariance",
]  # fmt: skip
