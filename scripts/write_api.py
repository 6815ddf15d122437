"""Write docs/api.md from signatures and docstrings: `make docs`.

What `import isotrace` offers, and the classes that a plug-in or a reader of results meets.
"""

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import isotrace

PAGE = Path(__file__).parents[1] / "docs" / "api.md"
CLASSES = (
    "subjects.subject:Subject", "subjects.subject:Batch", "dictionaries.dictionary:Dictionary", "base.result:Result",
    "base.registry:Registry", "subjects.families:Family", "subjects.families:Stack", "domains.domain:Domain",
)  # fmt: skip
WIDTH = 100


def plain(annotation: Any) -> str:
    """The type as text, without the modules that its names stand in and without what only the shell is told."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"Annotated\[([^,]+(?:\[[^\]]*\])?), .*\]$", r"\1", text)
    return re.sub(r"(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text)


def signature(name: str, thing: Any) -> str:
    parts, star = [], False
    for one in inspect.signature(thing).parameters.values():
        text = {one.VAR_POSITIONAL: "*", one.VAR_KEYWORD: "**"}.get(one.kind, "") + one.name
        if one.kind is one.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or one.kind in (one.KEYWORD_ONLY, one.VAR_POSITIONAL)
        if one.annotation is not one.empty:
            text += f": {plain(one.annotation)}"
        if one.default is not one.empty:
            shown = re.sub(r"\(.{40,}\)$", "(…)", repr(one.default), flags=re.DOTALL)
            text += f" = {'…' if ' at 0x' in shown or '<' in shown else plain(shown)}"
        if one.name not in ("self", "cls"):
            parts.append(text)
    back = inspect.signature(thing).return_annotation
    end = "" if back is inspect.Signature.empty or inspect.isclass(thing) else f" -> {plain(back)}"
    line = f"{name}({', '.join(parts)}){end}"
    return line if len(line) <= WIDTH else f"{name}(\n    " + ",\n    ".join(parts) + f",\n){end}"


def documented(thing: Any) -> str:
    """The docstring as it is written: layout matters in it. Made by a dataclass, it says nothing."""
    text = inspect.getdoc(thing) or ""
    return "" if text.startswith(f"{getattr(thing, '__name__', '')}(") else text


def members(cls: type) -> Iterator[tuple[str, str, str]]:
    """(code, name, docstring) of what a class itself or a class of isotrace above it defines, with a docstring."""
    seen = set()
    for owner in (c for c in cls.__mro__ if c.__module__.startswith("isotrace")):
        for name, value in vars(owner).items():
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            inner = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if inspect.isfunction(inner) and documented(inner):
                yield signature(name, inner), name, documented(inner)
            elif isinstance(value, property) and documented(value):
                back = inspect.signature(value.fget).return_annotation if value.fget else inspect.Signature.empty
                yield name + ("" if back is inspect.Signature.empty else f": {plain(back)}"), name, documented(value)


def section(name: str, thing: Any, level: int = 2) -> Iterator[str]:
    yield f"{'#' * level} {name}\n"
    protocol = getattr(thing, "_is_protocol", False)
    if not protocol:
        yield f"```python\n{signature(name, thing)}\n```\n"
    yield f"`{thing.__module__}`\n"
    if text := documented(thing):
        yield f"```text\n{text}\n```\n"
    if inspect.isclass(thing):
        for code, _, text in members(thing):
            yield f"```python\n{code}\n```\n"
            yield f"```text\n{text}\n```\n"


def render() -> str:
    lines = [
        "# The Python interface\n",
        "Made from signatures and docstrings by `make docs`. Words are in the [glossary](glossary.md).\n",
    ]
    for name in isotrace.__all__:
        if name != "__version__":
            lines += section(name, getattr(isotrace, name))
    lines.append("## Classes\n")
    for place in CLASSES:
        module, _, name = place.partition(":")
        lines += section(name, getattr(import_module(f"isotrace.{module}"), name), 3)
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"{PAGE.name}: {len(isotrace.__all__) - 1} names")
