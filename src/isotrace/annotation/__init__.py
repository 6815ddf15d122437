"""Features against named concepts, with the statistics that make a label a claim."""

from isotrace.annotation.associations import associate

__all__ = ["associate"]
