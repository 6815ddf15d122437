"""What a person watching a command sees: a progress bar on stderr, and the names of runs."""

import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""(items, what is done to them) → the same items, shown as they are taken."""


def progress(items: Iterable[Any], label: str) -> Iterable[Any]:
    """`items` with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import track

    return track(list(items), description=label, console=Console(file=sys.stderr), transient=True)


def slug(text: str) -> str:
    """A folder name: up to 100 letters, digits, - and _."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:100] or "trace"


def shortened(*lines: str, most: int = 8, width: int = 120) -> str:
    """`lines` below each other, none longer than `width` and no more than `most`: the last ones stay."""
    cut = [line if len(line) <= width else f"{line[: width - 1]}…" for line in lines]
    return "\n".join(cut if len(cut) <= most else [*cut[: most - 2], "…", cut[-1]])
