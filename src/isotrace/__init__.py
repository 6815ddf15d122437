"""isotrace: follow one prediction of a scientific language model through its features, back to its atoms."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isotrace.annotation.annotate import annotate
    from isotrace.api import trace
    from isotrace.dictionaries.fidelity import evaluate
    from isotrace.dictionaries.saving import load_dictionary
    from isotrace.subjects.subject import load_subject
    from isotrace.training.loop import train_dictionary

__version__ = "0.1.0"
__all__ = ["__version__", "annotate", "evaluate", "load_dictionary", "load_subject", "trace", "train_dictionary"]

_LAZY = {
    "annotate": "isotrace.annotation.annotate",
    "evaluate": "isotrace.dictionaries.fidelity",
    "load_dictionary": "isotrace.dictionaries.saving",
    "load_subject": "isotrace.subjects.subject",
    "trace": "isotrace.api",
    "train_dictionary": "isotrace.training.loop",
}


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `import isotrace` stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module 'isotrace' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
