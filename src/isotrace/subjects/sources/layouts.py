"""Checkpoints as the packages save them that they were trained with, in a folder or on the hub.

They are written again in the Hugging Face layout when they are first used, into the cache (`cache.py`), under a name
with the hash of the files they are made from. Nothing of them is executed.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from isotrace.subjects.sources import esmc, smited
from isotrace.subjects.sources.cache import kept, subjects_folder


@dataclass(frozen=True)
class Layout:
    """`files(folder)`: the weight files of a folder that is laid out so, of another none; it reads no weights.
    `convert(source, files, config, into)` writes config, weights, tokenizer and `subject.json` into an empty folder,
    `config` being the path of a config.json that may be there, and raises SubjectError for what is not as it should be.
    `patterns`: the weight files on the hub that are not called as transformers calls them."""

    name: str
    files: Callable[[Path], Sequence[Path]]
    convert: Callable[[str, Sequence[Path], Path, Path], None]
    patterns: tuple[str, ...] = ()


LAYOUTS = (
    Layout("esmc", esmc.files, esmc.convert, esmc.PATTERNS),
    Layout("smi-ted", smited.files, smited.convert, smited.PATTERNS),
)
PATTERNS = tuple(pattern for layout in LAYOUTS for pattern in layout.patterns)


def translated(source: str, folder: Path) -> Path:
    """The folder in the Hugging Face layout of a checkpoint in `folder`: that folder, or one of the cache. Raises
    SubjectError for a checkpoint of a known layout that cannot be translated."""
    for layout in LAYOUTS:
        if files := layout.files(folder):
            config, digest = folder / "config.json", hashlib.sha256()
            for path in [*files, config] if config.is_file() else files:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            place = subjects_folder() / "layouts" / f"{layout.name}-{digest.hexdigest()[:16]}"
            return kept(place, lambda into: layout.convert(source, files, config, into))  # noqa: B023  (called at once)
    return folder
