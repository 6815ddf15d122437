"""Run folders: what a command computed, beside a manifest that says how.

The manifest is written when the folder is opened (status `running`), after every file and at the end, so that a killed
run lists what it holds and can be taken up. While a run is open its folder is locked: a second process is refused.
"""

import dataclasses
import hashlib
import io
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import polars as pl

from isotrace.base.errors import InputError, RunError
from isotrace.base.files import LOCK, locked, write_whole
from isotrace.base.identity import Source, dumps, hardware, identity, sha256_file, versions
from isotrace.base.identity import to_jsonable as to_jsonable
from isotrace.base.work import LEDGER, WORK, names_of, remove

if TYPE_CHECKING:
    from torch import Tensor

FORMAT, FORMAT_VERSION = "isotrace-run", 1
MANIFEST = "manifest.json"
SUMMARY = "summary"  # of a run of many rows: the folder beside theirs that says what all of it is
Inputs = Mapping[str, Path | str | Source]


@dataclasses.dataclass(frozen=True)
class Run:
    """An open run folder. Every write is whole or absent: a temporary file is renamed into place.

    path: the folder. manifest: what `manifest.json` will hold; it grows as files are written.
    All writers return the path written, and raise RunError if the disk refuses.
    """

    path: Path
    manifest: dict[str, Any]

    @property
    def work(self) -> Path:
        """Where the run may keep what it computes on the way, see `work.claimed`: there while the run is not complete,
        so that the same command goes on behind it."""
        return self.path / WORK

    def folder(self, name: str) -> Path:
        """The folder `name` inside the run. Raises RunError for a name that leads out of it."""
        return self.path / _inner(name)

    def table(self, name: str, frame: pl.DataFrame) -> Path:
        """`frame` as Parquet in `{name}.parquet`."""
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        return self.bytes(_suffixed(name, ".parquet"), buffer.getvalue())

    def tensors(self, name: str, tensors: Mapping[str, "Tensor"], header: Mapping[str, str] | None = None) -> Path:
        """`tensors` (any shape and dtype, moved to the CPU) as safetensors in `{name}.safetensors`."""
        import torch
        from safetensors.torch import save

        # Views of one storage are legal here, not in the format: each is copied.
        owned = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
        return self.bytes(_suffixed(name, ".safetensors"), save(owned, dict(header) if header else None))

    def text(self, name: str, text: str) -> Path:
        """`text` as UTF-8 in the file `name`, given with its suffix (`report.html`, `molecule.svg`). What stands for
        bytes of a file name that are no UTF-8 is escaped."""
        return self.bytes(name, text.encode(errors="backslashreplace"))

    def json(self, name: str, obj: Any, *, indent: int | None = 2) -> Path:
        """`obj` through `to_jsonable` in `{name}.json`; `indent` None for what is large and nobody reads."""
        return self.text(_suffixed(name, ".json"), dumps(obj, indent=indent) + "\n")

    def bytes(self, name: str, data: bytes) -> Path:
        """`data` in the file `name`, which may lie in a subfolder (`cards/0.svg`)."""
        inner = _inner(name)
        target = write_whole(self.path / inner, data)
        self.manifest["files"][str(inner)] = hashlib.sha256(data).hexdigest()
        self._save()
        return target

    def expect(self, *names: str) -> None:
        """List files that something else will write here, so that a run killed before `adopt` is still recognised."""
        self.manifest["files"] |= {name: self.manifest["files"].get(name) for name in names}
        self._save()

    def adopt(self, *names: str) -> None:
        """Hash files that something else wrote here, and drop from the list those it did not."""
        for name in names:
            target = self.path / name
            self.manifest["files"].pop(name, None)
            if target.is_file():
                self.manifest["files"][name] = sha256_file(target)
        self._save()

    def _save(self) -> None:
        write_whole(self.path / MANIFEST, (dumps(self.manifest, indent=2) + "\n").encode())


@contextmanager
def open_run(
    path: str | Path,
    *,
    command: str,
    seed: int,
    inputs: Inputs,
    overwrite: bool,
    resume: bool = False,
    home: str | None = None,
) -> Iterator[Run]:
    """Make the run folder `path`, yield it open, and close its manifest. Open it before the work: then a folder that
    cannot be used costs nothing, and `wall_seconds` is what the work took.

    command: the command line, as typed; the same command may run again in its own folder.
    seed: the seed every random choice of the run derives from.
    inputs: what the numbers depend on. A Path is a file or folder, hashed by content; a str is a value itself
        (a SMILES); a Source is a subject or a dictionary by name and identity.
    overwrite: replace a complete run of another command. Files no run wrote are never removed.
    resume: go on in a folder that holds a run: nothing is removed, its list of files is taken over.
    home: the page that lists this run among others, as seen from its folder.

    Otherwise the folder's earlier run is removed first, but for the `work` of the same command. On an exception the
    manifest says `failed` and why, and the exception goes on. Raises RunError if the folder cannot be written, holds
    something else or is another process's just now, InputError if an input does not exist.
    """
    started = time.monotonic()
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "command": command,
        "versions": versions(),
        "seed": seed,
        "inputs": described(inputs),
        "hardware": hardware(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": None,
        "status": "running",
        "error": None,
        "home": home,
        "files": {},
    }
    run = Run(Path(path), manifest)
    with locked(run.path):
        if resume:
            manifest["files"] = read_manifest(run.path)["files"]
        else:
            _claim(run.path, command, overwrite)
        run._save()
        try:
            yield run
            with suppress(OSError):  # the next run here removes what is left
                remove(run.work)
        except BaseException as error:
            manifest.update(status="failed", error=f"{type(error).__name__}: {error}")
            manifest["wall_seconds"] = round(time.monotonic() - started, 3)
            with suppress(RunError):  # the first error is the one to report
                run._save()
            raise
        manifest.update(status="complete", wall_seconds=round(time.monotonic() - started, 3))
        run._save()


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of the run folder `path`. Raises RunError if the folder holds no run of this format."""
    try:
        manifest = json.loads((Path(path) / MANIFEST).read_bytes())
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise RunError(f"{path} is no run folder: it has no {MANIFEST} written by isotrace.")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise RunError(f"{path} has run format {manifest.get('format_version')}, not {FORMAT_VERSION}: run it again.")
    return manifest


def is_run(path: Path) -> bool:
    with suppress(RunError):
        return bool(read_manifest(path))
    return False


def rewritten(path: str | Path, name: str, content: bytes) -> Path:
    """Replace a file of a finished run, and its hash in the manifest."""
    with locked(Path(path)):
        return Run(Path(path), read_manifest(path)).bytes(name, content)


def _suffixed(name: str, suffix: str) -> str:
    return name.removesuffix(suffix) + suffix


def _inner(name: str) -> PurePosixPath:
    inner = PurePosixPath(name)
    reserved = inner.parts[:1] in ((MANIFEST,), (WORK,), (LOCK,), ())
    if inner.is_absolute() or ".." in inner.parts or "\\" in name or reserved:
        raise RunError(f"{name!r} is no file name a run can use: give one inside the run folder.")
    return inner


def _claim(path: Path, command: str, overwrite: bool) -> None:
    """Empty the folder of the run it holds. Raises RunError rather than touch anything else."""
    try:
        names = (file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir())
        if not (path / MANIFEST).is_file():
            if (path / SUMMARY / MANIFEST).is_file():
                remove_rows(path, command, overwrite)
                remove_run(path / SUMMARY)
            if found := next((name for name in names if name != LOCK), None):
                raise RunError(f"{path} holds files that no run wrote ({found}): choose another --out.")
            return
        present = {*names} - {LOCK}
    except OSError as error:
        raise RunError(f"cannot read the run folder {path} ({error.strerror}): choose another --out.") from None
    old = replaceable(path, command, overwrite)
    work = {f"{WORK}/{name}" for name in (LOCK, LEDGER, *names_of(path / WORK))}
    if foreign := present - old["files"].keys() - work - {MANIFEST}:
        raise RunError(f"{path} holds files that no run wrote ({min(foreign)}): move them or choose another --out.")
    try:
        for name in present - work - {MANIFEST}:
            (path / name).unlink()
        if old["command"] != command:
            remove(path / WORK)
    except OSError as error:
        raise RunError(f"cannot replace the run in {path} ({error.strerror}): choose another --out.") from None


def replaceable(path: Path, command: str, overwrite: bool) -> dict[str, Any]:
    """The manifest of the run in `path`, which `command` may replace: one of the same command, or one that failed or
    was stopped. Raises RunError for a complete one of another command, unless `overwrite` says so."""
    old = read_manifest(path)
    if old["command"] != command and old["status"] == "complete" and not overwrite:
        raise RunError(f"{path} holds the run '{old['command']}': choose another --out or give --overwrite.")
    return old


def remove_run(path: Path) -> None:
    """Remove what the run in `path` wrote, and folders that are empty then. Raises RunError if it cannot be done."""
    with locked(path):
        try:
            for name in read_manifest(path)["files"]:
                (path / _inner(name)).unlink(missing_ok=True)
            remove(path / WORK)
            (path / MANIFEST).unlink()
        except OSError as error:
            raise RunError(f"cannot remove the run in {path} ({error.strerror}): choose another --out.") from None
    for folder in (*sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True), path):
        with suppress(OSError):  # something else is in it
            folder.rmdir()


def remove_rows(path: Path, command: str, overwrite: bool, keep: Collection[str] = ()) -> None:
    """Remove what an earlier run of many rows left in `path`, but for folders of the same command called as in `keep`.
    Raises RunError, as `replaceable` does, before anything is removed."""
    commands, gone = {command}, []
    if (path / SUMMARY / MANIFEST).is_file():
        commands.add(replaceable(path / SUMMARY, command, overwrite)["command"])
    for folder in sorted(found.parent for found in path.glob(f"*/{MANIFEST}") if found.parent.name != SUMMARY):
        if not is_run(folder):
            continue
        theirs, kept = read_manifest(folder)["command"], folder.name in keep
        if theirs in commands and not (theirs == command and kept):
            gone.append(folder)
        elif kept:
            replaceable(folder, command, overwrite)
    for folder in gone:
        remove_run(folder)


def is_done(path: Path, *, command: str, seed: int, inputs: Inputs) -> bool:
    """Whether `path` holds a complete run, untouched, of the same command with the same inputs and versions."""
    try:
        found = read_manifest(path)
        asked = {"command": command, "seed": seed, "inputs": described(inputs), "versions": versions()}
        same = found["status"] == "complete" and all(found[name] == value for name, value in asked.items())
        return same and all(sha256_file(path / name) == digest for name, digest in found["files"].items())
    except (OSError, RunError):
        return False


def described(inputs: Inputs) -> dict[str, dict[str, str]]:
    """What a manifest says of `inputs`. Raises InputError for a file that cannot be read."""
    return {name: _describe(name, value) for name, value in inputs.items()}


def _describe(name: str, value: Path | str | Source) -> dict[str, str]:
    if isinstance(value, Source):
        return {"value": value.name, "identity": value.identity}
    if isinstance(value, str):
        return {"value": value, "sha256": hashlib.sha256(os.fsencode(value)).hexdigest()}
    try:
        return {"path": str(value), "sha256": identity(value) if value.is_dir() else sha256_file(value)}
    except OSError as error:
        raise InputError(f"{value}, the {name}, cannot be read ({error.strerror}): check the path.") from None
