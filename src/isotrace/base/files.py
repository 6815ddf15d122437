"""Files that are whole or absent, gzip that fits in memory, text that says how it is written, and folders that one
process has at a time."""

import csv
import fnmatch
import gzip
import io
import json
import os
import platform
import re
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
        for file in _leftovers(folder):
            file.unlink(missing_ok=True)
        yield
    finally:
        with suppress(OSError):  # first: another process that had opened it sees that it is gone, and tries again
            (folder / LOCK).unlink()
        lock.release()


def _leftovers(folder: Path) -> Iterator[Path]:
    """Temporary files in `folder`, but for those in folders inside it that another process has; a run's own work, where
    a kill leaves the lock, is its own."""
    for place, inner, names in os.walk(folder):
        if LOCK in names and Path(place) not in (folder, folder / ".work"):
            inner.clear()
            continue
        yield from (Path(place, name) for name in fnmatch.filter(names, TEMPORARY))


def _holder(lock: Path) -> str:
    try:
        found = json.loads(lock.read_text())
        return f"process {found['pid']} on {found['machine']} since {found['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def shipped_rows(package: str, name: str) -> list[dict[str, str]]:
    """The rows of the CSV file `name` that ships in `package`."""
    return list(csv.DictReader((files(package) / name).read_text(encoding="utf-8").splitlines()))


WORKBOOKS = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers")
_NO_TEXT = (
    (b"PK\x03\x04", "a workbook or an archive, whatever its name says: export its sheet as CSV, in UTF-8"),
    (b"\xd0\xcf\x11\xe0", "a workbook, whatever its name says: export its sheet as CSV, in UTF-8"),
    (b"\x1f\x8b", "compressed by gzip: rename it to end in .gz"),
    (b"PAR1", "Parquet: rename it to end in .parquet"),
    (b"%PDF", "a PDF document: give a file of text"),
    (b"BZh", "compressed by bzip2: unpack it"),
    (b"\xfd7zXZ", "compressed by xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "compressed by Zstandard: unpack it"),
)
_MARKS = (  # those of UTF-32 begin with those of UTF-16
    (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")
)  # fmt: skip


def decoded(data: bytes, label: object) -> str:
    """The text of a file: UTF-8, or UTF-16 and UTF-32 where a mark says so. Bytes that are no UTF-8 become lone
    surrogates, by which readers know the damaged rows.

    Raises InputError, with `label` as the file's name, for what is no text in these, and says what it is.
    """
    if what := next((what for magic, what in _NO_TEXT if data.startswith(magic)), None):
        raise InputError(f"{label} is {what}.")
    if coding := next((coding for mark, coding in _MARKS if data.startswith(mark)), None):
        try:
            return data.decode(coding)
        except UnicodeDecodeError as error:
            raise InputError(f"{label} is damaged {coding.upper()} ({error.reason}): save it as UTF-8.") from None
    start = data[:4096]
    if 8 * start.count(0) > len(start):
        raise InputError(f"{label} is not UTF-8 but seems to be UTF-16 without a mark: save it as UTF-8.")
    return data.decode("utf-8-sig", errors="surrogateescape")


def read_text(path: Path) -> str:
    """A file as `read_whole` and `decoded` give it. Raises InputError as they do, and where a byte is no UTF-8."""
    text = decoded(read_whole(path), path)
    if line := next((n for n, line in enumerate(text.splitlines(), 1) if re.search("[\udc80-\udcff]", line)), None):
        raise InputError(f"{path} is not UTF-8 (line {line}): save it as UTF-8.")
    return text


def refuse_workbook(path: Path) -> None:
    """Raises InputError for the name of a spreadsheet, and says what to do instead."""
    if path.suffix.lower() in WORKBOOKS:
        raise InputError(f"{path} is a workbook: export the sheet as CSV, in UTF-8, and give that file.")


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
