"""What a backend is, and the registry of them.

A backend is a generator function of (task, parts, placement): it does `task(part)` for each in some process and yields
(place of the part, None or why it failed) as they are done, in any order, each once.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isotrace.base.errors import InputError
from isotrace.base.registry import Registry


@dataclass(frozen=True)
class Placement:
    """`workers`: processes at a time. `folder`: for logs of jobs; None: beside nothing, a backend that writes some
    refuses. `partition`: of a cluster's queue."""

    workers: int
    folder: Path | None = None
    partition: str | None = None

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise InputError(f"{self.workers} workers: give 1 or more.")


Found = Generator[tuple[int, str | None]]
BACKENDS: Registry[Callable[[Callable[[Any], None], Sequence[Any], Placement], Found]] = Registry(
    "backend",
    "isotrace.backends",
    {name: f"isotrace.engine.backends.{name}" for name in ("local", "slurm", "ray")},
)


def why(error: BaseException) -> str:
    """In one line, the last: those before it are of traces from other processes."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[-1].strip()}"
