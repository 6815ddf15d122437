"""Architectures and sparsity rules by name. A new one is a file with a class under the decorator `named`."""

from typing import TYPE_CHECKING

from isotrace.base.errors import DictionaryError
from isotrace.base.registry import Registry

if TYPE_CHECKING:
    from isotrace.dictionaries.dictionary import Dictionary
    from isotrace.dictionaries.sparsity.rule import Rule

ARCHITECTURES: "Registry[type[Dictionary]]" = Registry(
    "architecture",
    "isotrace.architectures",
    {
        name: f"isotrace.dictionaries.architectures.{name}"
        for name in ("crosslayer", "sae", "skip_transcoder", "transcoder")
    },
    DictionaryError,
)
RULES: "Registry[type[Rule]]" = Registry(
    "sparsity rule",
    "isotrace.rules",
    {name: f"isotrace.dictionaries.sparsity.{name}" for name in ("batchtopk", "gated", "jumprelu", "relu", "topk")},
    DictionaryError,
)
