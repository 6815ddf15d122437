"""Architectures and sparsity rules by name. A new one is a file with a class under the decorator `named`."""

from pathlib import Path
from typing import TYPE_CHECKING

from isotrace.base.errors import DictionaryError
from isotrace.base.registry import Registry

if TYPE_CHECKING:
    from isotrace.dictionaries.dictionary import Dictionary
    from isotrace.dictionaries.sparsity.rule import Rule

_FILES = sorted(path.stem for path in (Path(__file__).parent / "architectures").glob("[!_]*.py"))
"""An architecture goes by the name of its file, so that a new one is a file and nothing else."""

ARCHITECTURES: "Registry[type[Dictionary]]" = Registry(
    "architecture",
    "isotrace.architectures",
    {name: f"isotrace.dictionaries.architectures.{name}" for name in _FILES},
    DictionaryError,
)
RULES: "Registry[type[Rule]]" = Registry(
    "sparsity rule",
    "isotrace.rules",
    {name: f"isotrace.dictionaries.sparsity.{name}" for name in ("batchtopk", "gated", "jumprelu", "relu", "topk")},
    DictionaryError,
)
