"""Jobs of a Slurm queue, by submitit; where there is no Slurm, processes that submitit starts here."""

from collections.abc import Callable, Sequence
from typing import Any

from isotrace.base.errors import InputError
from isotrace.engine.backends.backend import BACKENDS, Found, Placement, why

MINUTES = 24 * 60


def lane(task: Callable[[Any], None], parts: Sequence[Any]) -> list[str | None]:
    """One job: part after part, and why each failed."""
    reasons: list[str | None] = []
    for part in parts:
        try:
            task(part)
            reasons.append(None)
        except Exception as error:  # the other parts of the job go on
            reasons.append(why(error))
    return reasons


@BACKENDS.named("slurm")
def slurm(task: Callable[[Any], None], parts: Sequence[Any], placement: Placement) -> Found:
    """A job for each worker, which loads once what its parts need. The folder is on a disk that all nodes see."""
    try:
        import submitit
        from submitit.helpers import as_completed
    except ImportError:
        raise InputError("jobs of Slurm need submitit: pip install 'isotrace[slurm]'.") from None
    if placement.folder is None:
        raise InputError("jobs of Slurm write logs: give --out.")
    executor = submitit.AutoExecutor(folder=placement.folder / "slurm")
    executor.update_parameters(name="isotrace", timeout_min=MINUTES, cpus_per_task=1)
    if placement.partition is not None:
        executor.update_parameters(slurm_partition=placement.partition)
    places = [range(first, len(parts), placement.workers) for first in range(min(placement.workers, len(parts)))]
    with executor.batch():
        jobs = {executor.submit(lane, task, [parts[i] for i in lane_of]): lane_of for lane_of in places}
    try:
        for job in as_completed([*jobs], poll_frequency=10 if executor.cluster == "slurm" else 0.2):
            error = job.exception()
            reasons = [why(error)] * len(jobs[job]) if error is not None else job.result()
            yield from zip(jobs[job], reasons, strict=True)
    finally:
        for job in jobs:
            job.cancel(check=False)
