"""Changes of how a subject reads its input, not of what flows in it: where tokens are taken to stand."""

from isotrace.steering.inference.position_bias import PositionBias, position_bias
from isotrace.steering.inference.position_invariant import PositionInvariant
from isotrace.steering.inference.segments import Segments, fragments

__all__ = ["PositionBias", "PositionInvariant", "Segments", "fragments", "position_bias"]
