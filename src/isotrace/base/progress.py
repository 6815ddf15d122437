"""What a person watching a command sees: a progress bar on stderr, and the names of runs."""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

EVERY = 30.0
Progress = Callable[[Iterable[Any], str], Iterable[Any]]
"""(items, what is done to them) → the same items, shown as they are taken."""


def silent(items: Iterable[Any], label: str) -> Iterable[Any]:
    return items


def progress(items: Iterable[Any], label: str) -> Iterable[Any]:
    """`items` with a progress bar: in the cell of a notebook, or on stderr; where that is no terminal, a line every
    EVERY seconds."""
    items = list(items)
    if in_notebook():
        return _cell(items, label)
    if not sys.stderr.isatty():
        return _lines(items, label)
    from rich.console import Console
    from rich.progress import track

    return track(items, description=label, console=Console(file=sys.stderr), transient=True)


def shown(asked: Progress | bool | None) -> Progress:
    """What Python's `progress=` means: a function as it is, True shown, False not, None where a person watches."""
    if callable(asked):
        return asked
    return progress if asked or (asked is None and (in_notebook() or sys.stderr.isatty())) else silent


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this; a terminal's IPython is none."""
    ask = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    return hasattr(ask(), "kernel")


@contextmanager
def waiting(text: str) -> Iterator[Progress]:
    """`text` on a terminal until the first bar or the end, so that imports and loading are no silence; yields
    `progress`."""
    there = sys.stderr.isatty()

    def over() -> None:
        nonlocal there
        if there:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
        there = False

    def begun(items: Iterable[Any], label: str) -> Iterable[Any]:
        over()
        return progress(items, label)

    if there:
        print(text, end="", file=sys.stderr, flush=True)
    try:
        yield begun
    finally:
        over()


def _cell(items: list[Any], label: str) -> Iterator[Any]:
    """One line below the cell, written over at most twice a second; what stays says how long it took."""
    from IPython.display import display  # pyright: ignore[reportMissingImports]

    def told(line: str) -> dict[str, str]:
        return {"text/plain": line}

    started = last = time.monotonic()
    handle = display(told(f"{label}: 0 of {len(items)}"), raw=True, display_id=True)
    for done, item in enumerate(items):
        if done and (now := time.monotonic()) - last >= 0.5:
            last = now
            left = clock((last - started) * (len(items) - done) / done)
            handle.update(told(f"{label}: {done} of {len(items)}, {left} left"), raw=True)
        yield item
    handle.update(told(f"{label}: {len(items)} in {clock(time.monotonic() - started)}"), raw=True)


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
