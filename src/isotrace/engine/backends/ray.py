"""Tasks of a Ray cluster: that of RAY_ADDRESS, or one that is started here."""

import os
from collections.abc import Callable, Sequence
from typing import Any

from isotrace.base.errors import InputError
from isotrace.engine.backends.backend import BACKENDS, Found, Placement, why


@BACKENDS.named("ray")
def ray(task: Callable[[Any], None], parts: Sequence[Any], placement: Placement) -> Found:
    """Ray itself tries a task again whose node is gone. One that it was not is left running."""
    try:
        import ray as cluster  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError("tasks of Ray need it: pip install 'isotrace[ray]'.") from None
    mine = not cluster.is_initialized()
    if mine:
        given = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": placement.workers}
        cluster.init(include_dashboard=False, log_to_driver=False, **given)
    threads = {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}
    remote = cluster.remote(num_cpus=1, max_retries=3, runtime_env={"env_vars": threads})(_done)
    try:
        pending = {remote.remote(task, part): place for place, part in enumerate(parts)}
        while pending:
            ready, _ = cluster.wait([*pending], num_returns=1)
            try:
                cluster.get(ready[0])
                reason = None
            except cluster.exceptions.RayError as error:
                reason = why(error)
            yield pending.pop(ready[0]), reason
    finally:
        if mine:
            cluster.shutdown()


def _done(task: Callable[[Any], None], part: Any) -> None:
    task(part)
