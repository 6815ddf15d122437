"""Architectures and sparsity rules by name. A new one is a file with a class under the decorator."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from isotrace.base.errors import DictionaryError

if TYPE_CHECKING:
    from isotrace.dictionaries.dictionary import Dictionary
    from isotrace.dictionaries.sparsity.rule import Rule

T = TypeVar("T", bound=type)
ARCHITECTURES: dict[str, type["Dictionary"]] = {}
RULES: dict[str, type["Rule"]] = {}


def register(name: str) -> Callable[[T], T]:
    """Decorator of an architecture."""
    return _adding(ARCHITECTURES, name)


def register_rule(name: str) -> Callable[[T], T]:
    """Decorator of a sparsity rule."""
    return _adding(RULES, name)


def architecture(name: str) -> type["Dictionary"]:
    """Raises DictionaryError for a name nobody registered."""
    import isotrace.dictionaries.architectures  # noqa: F401  (registers them)

    return _found(ARCHITECTURES, "architecture", name)


def rule(name: str) -> type["Rule"]:
    """Raises DictionaryError for a name nobody registered."""
    import isotrace.dictionaries.sparsity  # noqa: F401  (registers them)

    return _found(RULES, "sparsity rule", name)


def _adding(table: dict, name: str) -> Callable[[T], T]:
    def add(cls: T) -> T:
        table[name] = cls
        return cls

    return add


def _found(table: dict, kind: str, name: str):
    if name not in table:
        known = ", ".join(sorted(table))
        raise DictionaryError(f"unknown {kind} {name!r}: there is {known}.")
    return table[name]
