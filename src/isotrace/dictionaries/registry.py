"""Architectures by name. A new one is a file with a class under `@register("name")`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from isotrace.errors import DictionaryError

if TYPE_CHECKING:
    from isotrace.dictionaries.crosslayer import CrossLayerTranscoder

T = TypeVar("T", bound=type)
ARCHITECTURES: dict[str, type["CrossLayerTranscoder"]] = {}


def register(name: str) -> Callable[[T], T]:
    def add(cls: T) -> T:
        ARCHITECTURES[name] = cls
        return cls

    return add


def architecture(name: str) -> type["CrossLayerTranscoder"]:
    """Raises DictionaryError for a name nobody registered."""
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise DictionaryError(f"unknown dictionary architecture {name!r} (known: {known}): update isotrace.")
    return ARCHITECTURES[name]
