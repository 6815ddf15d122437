"""isotrace: follow one prediction of a scientific language model through its features, back to its atoms."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isotrace.annotation.annotate import annotate
    from isotrace.dictionaries.hub import from_pretrained, push_to_hub, save_pretrained
    from isotrace.dictionaries.saving import load_dictionary
    from isotrace.evaluation.comparison import compare
    from isotrace.evaluation.fidelity import evaluate
    from isotrace.subjects.subject import load_subject
    from isotrace.training.loop import train_dictionary
    from isotrace.verbs.tracing import trace

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "annotate",
    "compare",
    "evaluate",
    "from_pretrained",
    "load_dictionary",
    "load_subject",
    "push_to_hub",
    "save_pretrained",
    "trace",
    "train_dictionary",
]

_LAZY = {
    "annotate": "isotrace.annotation.annotate",
    "compare": "isotrace.evaluation.comparison",
    "evaluate": "isotrace.evaluation.fidelity",
    "from_pretrained": "isotrace.dictionaries.hub",
    "load_dictionary": "isotrace.dictionaries.saving",
    "load_subject": "isotrace.subjects.subject",
    "push_to_hub": "isotrace.dictionaries.hub",
    "save_pretrained": "isotrace.dictionaries.hub",
    "trace": "isotrace.verbs.tracing",
    "train_dictionary": "isotrace.training.loop",
}


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `import isotrace` stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module 'isotrace' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
