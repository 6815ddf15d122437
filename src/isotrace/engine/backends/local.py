"""Processes of this machine."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import active_children, get_context, parent_process
from threading import Thread
from typing import Any

from isotrace.engine.backends.backend import BACKENDS, Found, Placement, why


@BACKENDS.named("local")
def local(task: Callable[[Any], None], parts: Sequence[Any], placement: Placement) -> Found:
    """Spawned, not forked: a fork of a process with threads may hang. Where one dies, all that are not done fail. None
    outlives who asked, whether that is stopped or killed."""
    others = {*active_children()}
    how = {"mp_context": get_context("spawn"), "initializer": _end_with_parent}
    pool = ProcessPoolExecutor(min(placement.workers, len(parts)), **how)
    try:
        futures = {pool.submit(task, part): place for place, part in enumerate(parts)}
        for future in as_completed(futures):
            error = future.exception()
            yield futures[future], None if error is None else why(error)
    except BaseException:  # who asked was stopped: parts may take hours
        for child in {*active_children()} - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """A pool whose process was killed leaves its workers waiting for ever."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
