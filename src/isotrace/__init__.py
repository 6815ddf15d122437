"""isotrace: follow one prediction of a scientific language model through its features, back to its atoms."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_LAZY = {
    "load_subject": "isotrace.subjects.subject",
    "load_dictionary": "isotrace.dictionaries.saving",
    "evaluate": "isotrace.dictionaries.fidelity",
    "train_dictionary": "isotrace.training.loop",
    "annotate": "isotrace.annotation.annotate",
    "trace": "isotrace.api",
}
__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `import isotrace` stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module 'isotrace' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
