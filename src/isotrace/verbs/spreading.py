"""Verbs whose work other processes can share."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from isotrace.base.errors import InputError
from isotrace.verbs.request import Progress, Request

if TYPE_CHECKING:
    from isotrace.engine.spread import Helpers


class OnWorkers(Request):
    workers: int | None = Field(default=None, ge=1)
    """Processes that share the work, each with one thread, so that 1 and 8 give the same; left out: this one alone."""
    backend: str = "local"
    """Where they run: local, slurm (a queue) or ray (a cluster)."""
    partition: str | None = None
    """Of the queue."""

    def look(self) -> None:
        super().look()
        if self.workers is None:
            if self.backend != "local" or self.partition is not None:
                raise InputError("--backend and --partition are for work that is shared: give --workers.")
            return
        from isotrace.engine.backends.backend import BACKENDS

        BACKENDS[self.backend]
        for name in ("subject", "dictionary", "untrained", "reader"):
            if not isinstance(getattr(self, name, None), str | Path | None):
                raise InputError(f"--workers load what they work with themselves: give {name} by its name or folder.")
        if str(getattr(self, "data", "")) == "-":
            raise InputError("--workers read the data themselves, and stdin can be read once: give a file.")


def helpers_of(
    request: OnWorkers, prepare: Callable[[Any], Callable[[Any], None]], spec: Any, progress: Progress
) -> "Helpers | None":
    """Those that are asked for, None where the work is not shared. `prepare`, `spec`: see `engine.Task`. Raises
    InputError for a request without a run folder."""
    if request.workers is None:
        return None
    from isotrace.engine.backends.backend import Placement
    from isotrace.engine.spread import Helpers, Task

    out: Path | None = getattr(request, "out", None)
    if out is None:
        raise InputError("--workers leave what they make in the run folder: give --out.")
    logs = out.resolve().with_name(f"{out.resolve().name}.jobs")
    placement = Placement(request.workers, logs, request.partition)
    return Helpers(Task.of(prepare, spec), request.backend, placement, progress)


def shared(
    request: OnWorkers, prepare: Callable[[Any], Callable[[Any], None]], spec: Any, parts: Sequence[Any],
    progress: Progress, label: str,
) -> bool:  # fmt: skip
    """Whether `parts` were done by workers, see `engine.spread`; what they made is then found where it belongs."""
    helpers = helpers_of(request, prepare, spec, progress)
    if helpers is not None:
        helpers.do(parts, label)
    return helpers is not None
