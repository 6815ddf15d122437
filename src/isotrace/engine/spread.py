"""One task cut into parts, done by processes of any backend.

A part leaves what it made where the process that asked would look for its own earlier work: in a run folder, or in a
`base.work.Memo`. Nothing is handed back and nothing is merged. The process that asked then goes through everything as
it would alone, and finds it done: so one worker and many, of any backend, give the same bytes, and what was killed goes
on. Every worker computes with one thread, as the number of threads decides the last bits of a sum.
"""

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isotrace.base.errors import IsotraceError, RunError
from isotrace.base.progress import Progress, silent
from isotrace.engine.backends.backend import BACKENDS, Placement

Do = Callable[[Any], None]
TRIES = 3
"""How often a part is tried whose process died or that failed."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")
_ready: dict[str, Do] = {}


@dataclass(frozen=True)
class Task:
    """`prepare(spec)` loads what all parts need, once a process, and gives what does one part; a function of a module,
    so that another process finds it. `spec`: what it is given, pickled. `cwd`: where relative paths begin."""

    prepare: Callable[[Any], Do]
    spec: bytes
    cwd: Path

    @classmethod
    def of(cls, prepare: Callable[[Any], Do], spec: Any) -> "Task":
        return cls(prepare, pickle.dumps(spec), Path.cwd())

    def __call__(self, part: Any) -> None:
        """What a user can mend (IsotraceError) is no failure: who asked meets it again, and says it."""
        os.chdir(self.cwd)
        key = hashlib.sha256(f"{self.prepare.__module__}.{self.prepare.__qualname__}".encode() + self.spec).hexdigest()
        with suppress(IsotraceError):
            if key not in _ready:
                _ready.clear()  # of an earlier task, whose subject would stay in memory
                _ready[key] = _nothing  # where it is refused, it would be for every part
                _ready[key] = self.prepare(pickle.loads(self.spec))
            _ready[key](part)


def _nothing(part: Any) -> None:
    pass


@dataclass(frozen=True)
class Helpers:
    """Processes that do parts of a task for one that then finds what they made."""

    task: Task
    backend: str
    placement: Placement
    progress: Progress = silent

    @property
    def workers(self) -> int:
        return self.placement.workers

    def do(self, parts: Sequence[Any], label: str) -> None:
        """Raises as `spread`."""
        spread(self.task, parts, self.backend, self.placement, label=label, progress=self.progress)


def spread(
    task: Task, parts: Sequence[Any], backend: str, placement: Placement, *, label: str, progress: Progress = silent
) -> None:  # fmt: skip
    """Do `task` for each of `parts`, which can be pickled. One whose process dies is tried again, TRIES times in all.

    Raises RunError with the first reason where parts are left, InputError for a backend that is not known or not
    installed.
    """
    run, left = BACKENDS[backend], dict.fromkeys(range(len(parts)), "")
    for _ in range(TRIES):
        if not left:
            return
        tried, left = [*left], {}
        with one_thread():
            found = run(task, [parts[i] for i in tried], placement)
            try:
                for _ in progress(tried, f"{label}, {placement.workers} workers"):
                    place, reason = next(found)
                    if reason is not None:
                        left[tried[place]] = reason
                next(found, None)  # its end
            finally:
                found.close()
    if left:
        failed = f"{len(left)} of {len(parts)} parts failed {TRIES} times, the first: {left[min(left)]}"
        raise RunError(f"{failed}. What is done is kept: the same command goes on.")


@contextmanager
def one_thread() -> Iterator[None]:
    """Processes started meanwhile compute with one thread each."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
