"""Processes of this machine."""

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from isotrace.engine.backends.backend import BACKENDS, Found, Placement, why


@BACKENDS.named("local")
def local(task: Callable[[Any], None], parts: Sequence[Any], placement: Placement) -> Found:
    """Spawned, not forked: a fork of a process with threads may hang. Where one dies, all that are not done fail."""
    pool = ProcessPoolExecutor(min(placement.workers, len(parts)), mp_context=get_context("spawn"))
    try:
        futures = {pool.submit(task, part): place for place, part in enumerate(parts)}
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], None if error is None else why(error)
    finally:
        pool.shutdown(cancel_futures=True)
