"""Methods that rank mediators; one interface for all of them, see `method`."""

from importlib import import_module
from pathlib import Path

from isotrace.circuits.methods.method import METHODS, Method, Metric, Problem, Scores, method, method_of

__all__ = ["METHODS", "Method", "Metric", "Problem", "Scores", "method", "method_of"]

for _file in sorted(Path(__file__).parent.glob("*.py")):
    if _file.stem != "__init__":
        import_module(f"{__name__}.{_file.stem}")
