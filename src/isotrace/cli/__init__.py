"""The command line: one thin file per command. Results go to stdout, progress and errors to stderr."""

import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from isotrace.base.errors import IsotraceError


class Stopped(BaseException):
    """Ctrl-C, or a request to end. No KeyboardInterrupt, which Typer would take without a word."""

    way_on = "the same command starts again"


def main() -> None:
    """Entry point: an error a user can act on is one line on stderr and an exit code (docs/runs.md)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # a start makes half a million objects, most of which stay: a sixth of its time went into looking for cycles in them
    gc.set_threshold(20_000)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a result that was computed is printed, whatever the terminal knows
        sys.stdout.reconfigure(errors="replace")
    try:
        with _stoppable():
            from isotrace.cli.commands import app  # which takes a second, in which one may have changed one's mind

            app()
    except IsotraceError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)
    except Stopped as stopped:
        _say(f"stopped; what was finished is kept: {stopped.way_on}.")
        sys.exit(130)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise Stopped here, once: the next one ends the process as it does elsewhere."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
        for each, handler in before.items():
            signal.signal(each, handler)
        raise Stopped(signal.Signals(number).name)

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(line: str) -> None:
    print(line.encode(errors="backslashreplace").decode(), file=sys.stderr)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module 'isotrace.cli' has no attribute {name!r}")
    from isotrace.cli.commands import app

    return app
