"""What checkpoints reach on tasks, and which cheap number foretells it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from isotrace.base.errors import InputError
from isotrace.base.progress import silent
from isotrace.verbs.request import COMMAS, PLACE, InFolder, Loaded, Progress, Seeded, verb
from isotrace.verbs.spreading import OnWorkers, shared

if TYPE_CHECKING:
    from isotrace.base.work import Work
    from isotrace.report.transfer.matrix import TransferResult
    from isotrace.transfer.measuring.measure import Measurement

CHEAP = ("probe", "knn", "logme", "h_score_shrunk", "transrate", "nleep", "rogi_xd", "kernel_alignment", "ln_params",
         "ln_tokens", "masked_loss")  # fmt: skip


class TransferRequest(InFolder, Seeded, OnWorkers):
    way_on = "the same command goes on from there"
    checkpoints: Annotated[Path, PLACE]
    """CSV with the columns name and source, or family, tokens_seen, pretrain_loss, dictionary and untrained too."""
    tasks: Path
    """CSV with the columns name (group/column where columns belong together), file, label, or split and kind too."""
    method: str = "probe"
    """How checkpoints are adapted: probe, probe_all, lora, full or scratch."""
    labels: int = Field(default=300, ge=20)
    """Labels to learn from, drawn anew with every seed."""
    test: int = Field(default=500, ge=20)
    """Sequences of the test part that are judged on, at most; the same for all."""
    seeds: int = Field(default=3, ge=1, le=100)
    """Trainings of every checkpoint on every task."""
    predictors: Annotated[tuple[str, ...], COMMAS] = CHEAP
    """What is to foretell the outcomes, by commas: see `isotrace.transfer.predictors`."""
    corpus: Loaded = None
    """Sequences like those of the pretraining, for predictors that read some."""
    domain: str | None = None
    """What tokens stand for, where a checkpoint does not say."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")
    """auto (a GPU where there is one), cpu, cuda or cuda:1."""
    out: Path
    """Run folder; the table of outcomes in it only grows, and a killed command goes on."""
    bootstrap: int = Field(default=1_000, ge=20)
    """Draws for the intervals."""

    def look(self) -> None:
        super().look()
        from isotrace.transfer.adapting.method import METHODS
        from isotrace.transfer.measuring.lists import read_checkpoints, read_task_list
        from isotrace.transfer.predictors.predictor import PREDICTORS

        read_checkpoints(self.checkpoints)
        read_task_list(self.tasks)
        METHODS[self.method]
        for name in self.predictors:
            PREDICTORS[name]
        if self.domain is not None:
            from isotrace.domains.domain import domain_of

            domain_of(self.domain)


@verb(TransferRequest)
def transfer_matrix(request: TransferRequest, progress: Progress) -> "TransferResult":
    """Adapt checkpoints to tasks, seed by seed, and tell how well cheap predictors foretell which does best.

    Every predictor stands beside the ceiling that the outcomes' own noise sets, and beside the cross-validated probe.
    """
    from isotrace.base.runs import open_run
    from isotrace.base.work import claimed
    from isotrace.report.transfer.matrix import transfer_result
    from isotrace.transfer.judging.outcomes import opened, read_outcomes
    from isotrace.transfer.measuring.judgement import judgement
    from isotrace.transfer.measuring.lists import read_checkpoints, read_task_list
    from isotrace.transfer.measuring.measure import GROUPS
    from isotrace.verbs.loading import named

    checkpoints, tasks = read_checkpoints(request.checkpoints), read_task_list(request.tasks)
    splits = {task.split or GROUPS for task in tasks}
    if len(splits) > 1:
        raise InputError(f"parts are named by {' and '.join(sorted(splits))}: give the tasks one column name.")
    inputs: dict[str, Any] = {"checkpoints": request.checkpoints, "tasks": request.tasks}
    inputs |= {} if request.corpus is None else {"corpus": named(request.corpus)}
    where = {"command": request.command, "seed": request.seed, "inputs": inputs, "overwrite": request.overwrite}
    kept = kept_in(request)
    with open_run(request.out, **where) as run:
        with claimed(kept / "work") as work, opened(kept) as outcomes:
            asked = measurement(request, work, progress)  # first, since workers leave what is wrong to be told here
            shared(request, measuring, request, range(len(checkpoints)), progress, "checkpoints")
            measured = asked.measured(outcomes, progress)
        frame = read_outcomes(kept)
        found = judgement(measured, frame, checkpoints, asked.settings, splits.pop(), request.bootstrap)
        result = transfer_result(found, measured, frame, asked.settings, asked.domain)
        result.write(run)
    return result


def measurement(request: TransferRequest, work: "Work", progress: Progress) -> "Measurement":
    """Raises as `Measurement.of`, and SubjectError for a first checkpoint of a domain that is not known."""
    from isotrace.subjects.subject import Subject, load_subject
    from isotrace.transfer.measuring.lists import Checkpoint, read_checkpoints, read_task_list
    from isotrace.transfer.measuring.measure import Measurement
    from isotrace.transfer.measuring.settings import MeasureSettings
    from isotrace.verbs.corpus import usable
    from isotrace.verbs.loading import domain_of_subject

    checkpoints, tasks = read_checkpoints(request.checkpoints), read_task_list(request.tasks)
    settings = MeasureSettings(
        request.method, request.labels, request.test, request.seeds, min(request.bootstrap, 200), request.seed,
        request.predictors,
    )  # fmt: skip
    first = load_subject(checkpoints[0].source, domain=request.domain, device=request.device)
    domain = domain_of_subject(first)

    def load(checkpoint: Checkpoint) -> Subject:
        return load_subject(checkpoint.source, domain=domain.name, device=request.device)

    corpus = [] if request.corpus is None else usable(first, request.corpus, None, None)[0]
    return Measurement.of(checkpoints, tasks, load, domain, settings, work, corpus=corpus, progress=progress)


def measuring(request: TransferRequest) -> Callable[[int], None]:
    """For a worker: what measures one checkpoint, and keeps it where the command looks for it."""
    from isotrace.base.work import Work

    asked = measurement(request, Work(kept_in(request) / "work"), silent)

    def one(i: int) -> None:
        asked.checkpoint(asked.checkpoints[i])

    return one


def kept_in(request: TransferRequest) -> Path:
    """Outcomes and what they are made of, beside the run."""
    return request.out.with_name(f"{request.out.name}.outcomes")
