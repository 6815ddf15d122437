"""What a computation keeps on the way, so that a killed one goes on: a folder that knows which files it wrote.

The ledger names the work's key and then every file, each before it is written: no other file is read, or ever removed.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from isotrace import __version__
from isotrace.base.errors import RunError
from isotrace.base.files import LOCK, locked, write_whole
from isotrace.base.identity import identity

WORK, LEDGER = ".work", ".isotrace-work"
FORMAT = "isotrace-work 1"


@dataclass(frozen=True)
class Work:
    """A claimed folder."""

    folder: Path

    @cached_property
    def _listed(self) -> set[str]:
        """Read once: a matrix keeps tens of thousands of files, and asks for each."""
        return {*names_of(self.folder)}

    def path(self, name: str) -> Path:
        """Where to write the file `name`, which the ledger then lists."""
        if name not in self._listed:
            with (self.folder / LEDGER).open("a", encoding="utf-8") as file:
                file.write(f"{name}\n")
            self._listed.add(name)
        return self.folder / name

    def arrays(self, name: str, arrays: dict[str, Any]) -> Path:
        """`arrays` in the file `name` as npz, whole or absent."""
        return write_whole(self.path(name), partial(np.savez, **arrays))


@contextmanager
def claimed(folder: Path, key: Any = None) -> Iterator[Work]:
    """`folder` for the work that `key` names, whatever has an identity: made if it is not there, emptied of earlier
    work with another key, or done with another version of isotrace, and locked meanwhile.

    Raises RunError if it holds files that no such work wrote, or is in use.
    """
    head = f"{FORMAT} {__version__} {identity(key)}"
    with locked(folder):
        present = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}
        if foreign := present - {LOCK, LEDGER, *names_of(folder)}:
            what = f"{folder} holds files that are not isotrace's ({min(foreign)})"
            raise RunError(f"{what}: move them or choose another folder.")
        if _lines(folder)[:1] != [head]:
            _clear(folder)
            write_whole(folder / LEDGER, f"{head}\n".encode())
        yield Work(folder)


def names_of(folder: Path) -> list[str]:
    """The files that the work in `folder` wrote; none where there is no work."""
    return [name for name in _lines(folder)[1:] if Path(name).name == name]


def remove(folder: Path) -> None:
    """Remove what the work in `folder` wrote, and the folder if nothing else is in it. Raises OSError."""
    if _lines(folder):
        _clear(folder)
        with suppress(OSError):  # something else is in it
            (folder / LOCK).unlink(missing_ok=True)
            folder.rmdir()


def _clear(folder: Path) -> None:
    for name in (*names_of(folder), LEDGER):
        (folder / name).unlink(missing_ok=True)


def _lines(folder: Path) -> list[str]:
    try:
        lines = (folder / LEDGER).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    return lines if lines and lines[0].startswith(FORMAT) else []


class Memo:
    """`memo(key, compute)` is `compute()`, or what an earlier run with the same key stored in `work`. Keys must hold
    all that the array depends on: `common` what all have in common, the steps' `CACHE` numbers among it (each is raised
    when its step's code changes its numbers). Without work nothing is stored."""

    def __init__(self, work: Work | None, *common: Any) -> None:
        self.work, self.common = work, identity([__version__, *common])

    def __call__(self, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        if self.work is None:
            return compute()
        path = self.work.path(f"{identity([self.common, key])[:32]}.npy")
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError):  # absent, or cut off by a kill
            array = compute()
        write_whole(path, lambda file: np.save(file, array, allow_pickle=False))
        return array

    def plain(self, key: str, compute: Callable[[], Any]) -> Any:
        """The same for what JSON can write, NaN included."""
        text = self(key, lambda: np.frombuffer(json.dumps(compute()).encode(), np.uint8))
        return json.loads(text.tobytes())
