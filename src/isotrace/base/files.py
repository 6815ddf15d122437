"""Files that are whole or absent, gzip that fits in memory, and folders that one process has at a time."""

import csv
import gzip
import io
import json
import os
import platform
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from isotrace.base.errors import InputError, RunError

LOCK = ".isotrace.lock"
TEMPORARY = ".isotrace-*.tmp"
ALWAYS_BYTES = 2**28  # may be unpacked, however small the file is
MOST_TIMES = 100  # its own size is what a larger file may unpack to; tables and structures grow 3 to 30 times


def write_whole(target: Path, content: bytes | Callable[[IO[bytes]], Any]) -> Path:
    """Write bytes, or what `content` writes to an open file, beside `target`, and rename it there. Makes the folder.

    One process writes a target at a time (see `locked`), so that the name beside it is fixed, and what a killed one
    left there goes with the next write. Others may read it as the umask says. Raises RunError if the disk refuses; what
    stood at `target` then still stands.
    """
    temporary = target.with_name(TEMPORARY.replace("*", target.name))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with temporary.open("wb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if callable(content):
                content(file)
            else:
                file.write(content)
        # safetensors renames a file of its own, which nobody else may read, to the name it is given
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch turns a full disk into a RuntimeError
        with suppress(OSError):
            temporary.unlink()
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        advice = "free space and go on, or choose another folder; what stood there is kept"
        raise RunError(f"cannot write {target} ({reason}): {advice}.") from error
    return target


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """`folder`, made if it is not there, is this process's alone; what a killed one was writing is cleared away.

    Raises RunError, saying which process has it and since when, while another one does (or this one, elsewhere), and
    if the folder cannot be made. The lock goes when the process does, however it ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        who = _holder(folder / LOCK)
        raise RunError(f"{folder} is in use by {who}: wait for it, or choose another --out.") from None
    except OSError as error:
        raise RunError(f"cannot use the folder {folder} ({error.strerror}): choose another --out.") from None
    try:
        holder = {"pid": os.getpid(), "machine": platform.node(), "since": datetime.now(UTC).isoformat(" ", "seconds")}
        with suppress(OSError):  # a full disk, of which the run itself will say more
            (folder / LOCK).write_text(json.dumps(holder))
        for file in folder.rglob(TEMPORARY):
            file.unlink(missing_ok=True)
        yield
    finally:
        with suppress(OSError):  # first: another process that had opened it sees that it is gone, and tries again
            (folder / LOCK).unlink()
        lock.release()


def _holder(lock: Path) -> str:
    try:
        found = json.loads(lock.read_text())
        return f"process {found['pid']} on {found['machine']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def shipped_rows(package: str, name: str) -> list[dict[str, str]]:
    """The rows of the CSV file `name` that ships in `package`."""
    return list(csv.DictReader((files(package) / name).read_text(encoding="utf-8").splitlines()))


def read_whole(path: Path) -> bytes:
    """The content of a file, unpacked where its name ends in .gz. Raises InputError where it cannot be read, and where
    it unpacks to more than can be meant: a few kilobytes can stand for gigabytes."""
    try:
        raw = path.read_bytes()
        if not path.name.lower().endswith(".gz"):
            return raw
        limit = max(ALWAYS_BYTES, MOST_TIMES * len(raw))
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            found = file.read(limit + 1)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): check the file.") from None
    if len(found) > limit:
        raise InputError(f"{path} unpacks to more than {limit:,} bytes: if that is meant, give it unpacked.")
    return found
