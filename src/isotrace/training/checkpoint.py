"""Checkpoints: written whole or not at all, so that a kill or a full disk leaves the last good one."""

from pathlib import Path
from typing import Any

import torch

from isotrace.base.errors import RunError
from isotrace.base.files import write_whole

FORMAT, VERSION = "isotrace-checkpoint", 1


def save_checkpoint(path: Path, settings: dict[str, Any], state: dict[str, Any]) -> None:
    """Raises RunError when it cannot be written; an earlier checkpoint at `path` then still stands."""
    content = {"format": FORMAT, "format_version": VERSION, "settings": settings, "state": state}
    write_whole(path, lambda file: torch.save(content, file))


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """`settings` and `state` of the file at `path`, None if there is none. Raises RunError when it is damaged."""
    if not path.exists():
        return None
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # a damaged zip raises many kinds
        raise RunError(f"{path} is damaged: delete it and start again.") from error
    if not isinstance(saved, dict) or (saved.get("format"), saved.get("format_version")) != (FORMAT, VERSION):
        raise RunError(f"{path} is no checkpoint of this version: delete it and start again.")
    return saved


def load_checkpoint(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The state saved at `path`, None if there is none.

    Raises RunError when the file is damaged, or when it was written with other settings (the message names them).
    """
    saved = read_checkpoint(path)
    if saved is None:
        return None
    if differing := differences(saved["settings"], settings):
        raise RunError(f"{path} was written with other settings: {differing}. Use them again, or another folder.")
    return saved["state"]


def differences(there: Any, here: Any, name: str = "") -> str:
    """ "learning_rate 0.1 ≠ 0.2; …" of two nested settings, empty if they are equal."""
    if isinstance(there, dict) and isinstance(here, dict):
        parts = [differences(there.get(k), here.get(k), k) for k in {**there, **here}]
        return "; ".join(p for p in parts if p)
    if isinstance(there, list | tuple) and isinstance(here, list | tuple) and len(there) == len(here):
        return "; ".join(p for p in (differences(a, b, name) for a, b in zip(there, here, strict=True)) if p)
    return "" if there == here else f"{name} {there!s:.60} ≠ {here!s:.60}"
