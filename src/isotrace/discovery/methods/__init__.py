"""Methods that rank the parts of a circuit; one interface for all of them, see `discovery.method`."""

from importlib import import_module
from pathlib import Path

from isotrace.discovery.method import METHODS, Method, Metric, Problem, Scores, method, method_of

__all__ = ["METHODS", "Method", "Metric", "Problem", "Scores", "method", "method_of"]

_HERE = Path(__file__).parent
for _file in sorted([*_HERE.glob("*.py"), *(_HERE.parent / "edges").glob("*.py")], key=lambda path: path.stem):
    if _file.stem != "__init__":
        _parent = __name__ if _file.parent == _HERE else "isotrace.discovery.edges"
        import_module(f"{_parent}.{_file.stem}")
