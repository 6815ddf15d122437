"""Other tools' dictionary formats. One module each with `declares(path)`, `read(paths, hints)` and, where the format
can be written, `write(dictionary, folder, source)`; a reader or writer refuses what it cannot represent exactly."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from isotrace.base.errors import DictionaryError, InputError
from isotrace.base.registry import Registry
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.interop.foreign import Foreign, Hints

_SHIPPED = (
    "saelens", "sparsify", "clt_training", "circuit_tracer", "dictionary_learning", "interplm", "interprot",
    "protomech", "clt_forge",
)  # fmt: skip
FORMATS: Registry[ModuleType] = Registry(
    "format", "isotrace.formats", {name: f"isotrace.dictionaries.interop.formats.{name}" for name in _SHIPPED}
)

__all__ = ["FORMATS", "Foreign", "Hints", "detect", "read", "write", "written"]


def written() -> list[str]:
    """The formats that can be written."""
    return [name for name, module in FORMATS.items() if hasattr(module, "write")]


def detect(path: Path) -> str:
    """The format that the files at `path` declare. Raises DictionaryError if none or several do."""
    if not path.exists():
        raise InputError(f"{path} does not exist: give a folder or file.")
    found = [name for name, module in FORMATS.items() if module.declares(path)]
    if len(found) != 1:
        what = f"could be {' or '.join(found)}" if found else "declares no format known here"
        raise DictionaryError(f"{path} {what}: give --from, one of {', '.join(FORMATS)}.")
    return found[0]


def read(paths: Sequence[Path], hints: Hints, format: str | None = None) -> Foreign:
    """Read one or several folders or files as one dictionary. Raises DictionaryError, InputError."""
    if format is None:
        format = detect(paths[0])
    reader = FORMATS[format]
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist: give a folder or file.")
    try:
        return reader.read(list(paths), hints)
    except (KeyError, TypeError, AttributeError) as error:  # a config without what every one of its tool has
        raise DictionaryError(f"{paths[0]} is no complete {format} dictionary ({error!r}): get it again.") from error


def write(dictionary: Dictionary, folder: Path, format: str, source: str) -> list[str]:
    """Write `dictionary` for another tool; returns notes. `source` names the subject, for the tool's config.

    Raises DictionaryError for what the format cannot hold, RunError for a folder that cannot be written, InputError
    for an unknown format.
    """
    if format not in written():
        raise InputError(f"{format!r} cannot be written: there is {', '.join(written())}.")
    if dictionary.fitted:
        what = dictionary.config.architecture
        raise DictionaryError(f"{what} encodes as no other tool does: train an sae or a transcoder to exchange.")
    return FORMATS[format].write(dictionary, folder, source)
