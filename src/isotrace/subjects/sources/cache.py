"""The folder where subjects lie that were written anew in the Hugging Face layout: once, then served from there.

It is `$ISOTRACE_CACHE`, or the platform's folder for caches (`~/.cache/isotrace` on Linux); see docs/subjects.md.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from platformdirs import user_cache_path

from isotrace.base.errors import SubjectError
from isotrace.base.settings import expanded

LAYOUT = 1  # raised when conversion writes other files than before, so that older ones are not taken for new


def cache_folder() -> Path:
    """Raises SubjectError for a user without a home, who has to name one."""
    if chosen := os.environ.get("ISOTRACE_CACHE"):
        return Path(expanded(chosen))
    try:
        return user_cache_path("isotrace", appauthor=False)
    except RuntimeError:
        raise SubjectError("this user has no home folder for a cache: set ISOTRACE_CACHE to a folder.") from None


def subjects_folder() -> Path:
    return cache_folder() / f"subjects-{LAYOUT}"


def is_whole(folder: Path) -> bool:
    return (folder / "subject.json").is_file()


def kept(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, which `write` has filled, now or before, as an empty folder beside it that was then renamed: processes
    that do the same at the same time cannot disturb each other. Raises SubjectError if the cache cannot be written."""
    try:
        if is_whole(folder):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as temporary:
            partial = Path(temporary) / folder.name
            partial.mkdir()
            write(partial)
            try:
                partial.rename(folder)
            except OSError:
                if not is_whole(folder):  # else another process was faster
                    raise
    except OSError as error:
        raise SubjectError(
            f"cannot write the cache {cache_folder()} ({error}): make room there, or set ISOTRACE_CACHE to another."
        ) from error
    return folder
