"""Methods that rank the parts of a circuit; one interface for all of them, see `discovery.method`."""

from isotrace.discovery.method import METHODS, Method, Metric, Problem, Scores, method, method_of

__all__ = ["METHODS", "Method", "Metric", "Problem", "Scores", "method", "method_of"]
