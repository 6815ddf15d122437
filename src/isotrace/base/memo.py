"""Arrays computed once: a killed run takes them up where it stopped."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np


class Memo:
    """`memo(key, compute)` is `compute()`, or what an earlier run with the same key stored in `folder`. Keys must hold
    all that the array depends on. Without a folder nothing is stored."""

    def __init__(self, folder: Path | None, *common: str) -> None:
        self.folder, self.common = folder, common
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, key: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
        if self.folder is None:
            return compute()
        path = self.folder / f"{hashlib.sha256(repr((*self.common, key)).encode()).hexdigest()[:32]}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError):  # absent, or cut off by a kill
            array = compute()
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        temporary.replace(path)
        return array
