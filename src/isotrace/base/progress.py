"""What a person watching a command sees: a progress bar on stderr, and the names of runs."""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

EVERY = 30.0
Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""(items, what is done to them) → the same items, shown as they are taken."""


def progress(items: Iterable[Any], label: str) -> Iterable[Any]:
    """`items` with a progress bar on stderr; where that is no terminal, a line every EVERY seconds."""
    items = list(items)
    if not sys.stderr.isatty():
        return _lines(items, label)
    from rich.console import Console
    from rich.progress import track

    return track(items, description=label, console=Console(file=sys.stderr), transient=True)


def _lines(items: list[Any], label: str) -> Iterator[Any]:
    started, lines = time.monotonic(), Lines()
    for done, item in enumerate(items):
        if done:
            left = (time.monotonic() - started) * (len(items) - done) / done
            lines(f"{label}: {done} of {len(items)}, {clock(left)} left")
        yield item


class Lines:
    """Says a line on stderr if none was said in the last EVERY seconds: what a log file of a long run can hold."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def __call__(self, line: str) -> None:
        if time.monotonic() - self.last >= EVERY:
            self.last = time.monotonic()
            print(line, file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """As 1:02:03 or 2:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def slug(text: str) -> str:
    """A folder name: up to 100 letters, digits, - and _."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")[:100] or "trace"


def shortened(*lines: str, most: int = 8, width: int = 120) -> str:
    """`lines` below each other, none longer than `width` and no more than `most`: the last ones stay."""
    cut = [line if len(line) <= width else f"{line[: width - 1]}…" for line in lines]
    return "\n".join(cut if len(cut) <= most else [*cut[: most - 2], "…", cut[-1]])
