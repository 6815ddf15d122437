"""Ways to find a direction from data, one file each: `DIRECTIONS[name].fit(subject, contrast)` gives edits."""

from isotrace.steering.directions.direction import DIRECTIONS, Direction, Fitting, direction, needs

__all__ = ["DIRECTIONS", "Direction", "Fitting", "direction", "needs"]
