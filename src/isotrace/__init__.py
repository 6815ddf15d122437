"""isotrace: follow one prediction of a scientific language model through its features, back to its atoms."""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from isotrace.base.moved import Moved

if TYPE_CHECKING:
    from isotrace.base.result import load
    from isotrace.dictionaries.featuriser import Featuriser
    from isotrace.dictionaries.hub import push_to_hub, save_pretrained
    from isotrace.dictionaries.saving import load_dictionary
    from isotrace.subjects.subject import load_subject
    from isotrace.verbs.adapt import adapt
    from isotrace.verbs.annotate import annotate
    from isotrace.verbs.balance import balance
    from isotrace.verbs.circuit import circuit
    from isotrace.verbs.convert import convert
    from isotrace.verbs.demo import demo
    from isotrace.verbs.doctor import doctor
    from isotrace.verbs.evaluate import evaluate
    from isotrace.verbs.features import features
    from isotrace.verbs.harvest import harvest
    from isotrace.verbs.intervene import intervene
    from isotrace.verbs.map import tracing_map
    from isotrace.verbs.probe import fit_probe
    from isotrace.verbs.recommend import recommend
    from isotrace.verbs.reproduce import reproduce
    from isotrace.verbs.scan import scan
    from isotrace.verbs.steer import steer
    from isotrace.verbs.trace import trace
    from isotrace.verbs.tracing import Tracer
    from isotrace.verbs.train import train
    from isotrace.verbs.transfer import transfer_matrix

__version__ = "0.1.0"
__all__ = [
    "Featuriser",
    "Tracer",
    "__version__",
    "adapt",
    "annotate",
    "balance",
    "circuit",
    "convert",
    "demo",
    "doctor",
    "evaluate",
    "features",
    "fit_probe",
    "harvest",
    "intervene",
    "load",
    "load_dictionary",
    "load_subject",
    "push_to_hub",
    "recommend",
    "reproduce",
    "save_pretrained",
    "scan",
    "steer",
    "trace",
    "tracing_map",
    "train",
    "transfer_matrix",
]

sys.meta_path.insert(0, Moved())

_LAZY = {
    "Featuriser": "isotrace.dictionaries.featuriser",
    "Tracer": "isotrace.verbs.tracing",
    "adapt": "isotrace.verbs.adapt",
    "annotate": "isotrace.verbs.annotate",
    "balance": "isotrace.verbs.balance",
    "circuit": "isotrace.verbs.circuit",
    "convert": "isotrace.verbs.convert",
    "demo": "isotrace.verbs.demo",
    "doctor": "isotrace.verbs.doctor",
    "evaluate": "isotrace.verbs.evaluate",
    "features": "isotrace.verbs.features",
    "fit_probe": "isotrace.verbs.probe",
    "harvest": "isotrace.verbs.harvest",
    "intervene": "isotrace.verbs.intervene",
    "load": "isotrace.base.result",
    "load_dictionary": "isotrace.dictionaries.saving",
    "load_subject": "isotrace.subjects.subject",
    "push_to_hub": "isotrace.dictionaries.hub",
    "recommend": "isotrace.verbs.recommend",
    "reproduce": "isotrace.verbs.reproduce",
    "save_pretrained": "isotrace.dictionaries.hub",
    "scan": "isotrace.verbs.scan",
    "steer": "isotrace.verbs.steer",
    "trace": "isotrace.verbs.trace",
    "tracing_map": "isotrace.verbs.map",
    "train": "isotrace.verbs.train",
    "transfer_matrix": "isotrace.verbs.transfer",
}


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that `import isotrace` stays fast."""
    if name not in _LAZY:
        raise AttributeError(f"module 'isotrace' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """What tab completion offers: names that are not imported yet among them."""
    return [*__all__]
