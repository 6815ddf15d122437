"""Work cut into parts that other processes do: here, in a cluster's queue, or on Ray."""

from isotrace.engine.spread import Helpers, Task, spread

__all__ = ["Helpers", "Task", "spread"]
