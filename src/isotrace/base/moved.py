"""Module paths of the first layout that scripts of users import: they lead to where the modules are now, and warn."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "isotrace.annotation.concept_files": "isotrace.datasets.concept_files",
    "isotrace.annotation.data": "isotrace.datasets.annotated",
    "isotrace.api": "isotrace.verbs.tracing",
    "isotrace.circuits": "isotrace.attribution",
    "isotrace.circuits.targets": "isotrace.subjects.targets",
    "isotrace.circuits.tasks": "isotrace.discovery.tasks",
    "isotrace.circuits.tasks.data": "isotrace.datasets.tasks",
    "isotrace.dictionaries.comparison": "isotrace.evaluation.comparison",
    "isotrace.dictionaries.controls": "isotrace.evaluation.controls",
    "isotrace.dictionaries.fidelity": "isotrace.evaluation.fidelity",
    "isotrace.errors": "isotrace.base.errors",
    "isotrace.inputs": "isotrace.datasets.inputs",
    "isotrace.runs": "isotrace.base.runs",
}


def moved(name: str) -> str | None:
    """Where a module of the first layout is now; those inside a moved package are where the package is."""
    parent, _, rest = name.rpartition(".")
    return MOVED.get(name) or (parent in MOVED and f"{MOVED[parent]}.{rest}") or None


class Moved(MetaPathFinder, Loader):
    """Finds them before the import system looks into the folder of a moved package, and would load a file twice."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return None if moved(fullname) is None else ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        name, now = module.__name__, str(moved(module.__name__))
        warnings.warn(f"{name} is {now} now: import that", DeprecationWarning, stacklevel=2)
        sys.modules[name] = import_module(now)
