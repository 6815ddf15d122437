"""Which features a task rests on, and whether they can do it alone."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from isotrace.base.progress import silent
from isotrace.verbs.request import COMMAS, REPEATED, OnDictionary, Progress, Seeded, look_at, verb
from isotrace.verbs.spreading import OnWorkers, helpers_of

if TYPE_CHECKING:
    import polars as pl

    from isotrace.datasets.tasks import TaskData
    from isotrace.dictionaries.dictionary import Dictionary
    from isotrace.discovery.tasks.finding import Part
    from isotrace.report.circuit.result import CircuitResult
    from isotrace.subjects.subject import Subject


class CircuitRequest(OnDictionary, Seeded, OnWorkers):
    way_on = "the same command goes on from there"
    label: str
    """Column of labels: classes, numbers, or 0/1 strings per residue."""
    out: Path | None = None
    """Run folder; left out, the command takes one in runs/, and with --json or in Python nothing is saved."""
    split: str | None = None
    """Column that names parts: train, valid, test."""
    task: str | None = None
    """class, regression, residue, masked or mutation; else told from the labels."""
    mutations: str | None = None
    """Column of mutations (A24G:K31R), for --task mutation."""
    group: str | None = None
    """Column of groups that parts keep together."""
    mediator: str = "feature"
    """What the circuit is made of: feature, neuron, head, attention or mlp."""
    ranking: str = "attribution_patching"
    """attribution_patching, relp, eap_ig or pruning; of heads and the like any method for nodes."""
    sizes: Annotated[tuple[int, ...] | None, COMMAS] = None
    """Numbers of features to keep, by commas."""
    target: str | None = None
    """probe:…, class:… or output:… to read, instead of a probe fitted to the labels here."""
    metric: str | None = None
    """(macro_)auroc, balanced_accuracy, spearman or r2."""
    controls: int = Field(default=20, ge=2)
    """Matched random circuits per size."""
    bootstrap: int = Field(default=500, ge=20)
    """Draws of groups for the intervals."""
    limit: int | None = Field(default=None, ge=3)
    """At most so many to discover on, and to report on."""
    against: Annotated[tuple[Path, ...], REPEATED] = ()
    """Run folder of another task's circuit, to count shared parts; repeatable."""
    names: Path | None = None
    """Run of annotate that names the features, instead of the dictionary's shelf."""
    drawn: int = Field(default=12, ge=0)
    """Report sequences to draw."""

    def look(self) -> None:
        super().look()
        named = {"label": self.label, "split": self.split, "group": self.group, "mutations": self.mutations}
        look_at(self.data, self.column, **named)
        if self.target is not None and isinstance(self.subject, str | Path):
            from isotrace.subjects.sources.source import look
            from isotrace.subjects.targets import look_at_target

            if (folder := look(str(self.subject))) is not None:
                look_at_target(self.target, folder, str(self.subject))


@verb(CircuitRequest)
def circuit(request: CircuitRequest, progress: Progress) -> "CircuitResult":
    """Find the circuit of a task, and prove it: sufficiency, necessity, controls, intervals, on held-out groups."""
    from isotrace.dictionaries.shelf import shelf_of
    from isotrace.discovery.overlap import overlap_with
    from isotrace.discovery.tasks.task_circuit import TaskConfig, find_circuit
    from isotrace.report.circuit.result import circuit_result
    from isotrace.verbs.loading import domain_of_subject, label, opened

    config, helpers = request.settings(TaskConfig), helpers_of(request, finding, request, progress)
    asked = Asked.of(request)
    subject, dictionary = asked.subject, asked.dictionary
    shelf = shelf_of(dictionary, names=request.names)
    with opened(request, request.out, subject, dictionary) as run:
        prepared = asked.data(request, progress)
        given = {"work": run and run.work, "helpers": helpers, "progress": progress}
        found = find_circuit(subject, dictionary, prepared, config, **given)
        result = circuit_result(
            found, subject, domain_of_subject(subject), label(request.dictionary), shelf.tables, n_drawn=request.drawn,
            overlap=overlap_with(found, request.against) if request.against else (), rows=asked.rows,
            progress=progress,
        )  # fmt: skip
        if run is not None:
            result.write(run)
    return result


@dataclass(frozen=True, eq=False)
class Asked:
    """What a circuit is of, as far as it is known before any sequence is read."""

    subject: "Subject"
    dictionary: "Dictionary"
    rows: "pl.DataFrame"
    rejects: "pl.DataFrame"

    @classmethod
    def of(cls, request: CircuitRequest) -> "Asked":
        """Raises as the readers of all that do."""
        from isotrace.datasets.inputs import read_inputs
        from isotrace.verbs.loading import dictionary_of, domain_of_subject, subject_of

        subject = subject_of(request)
        domain_of_subject(subject)
        dictionary = dictionary_of(request.dictionary, subject)
        return cls(subject, dictionary, *read_inputs(request.data, column=request.column))

    def data(self, request: CircuitRequest, progress: Progress) -> "TaskData":
        """Every sequence read. Raises InputError as `prepare`."""
        from isotrace.datasets.tasks import prepare
        from isotrace.verbs.loading import domain_of_subject

        return prepare(
            self.subject, domain_of_subject(self.subject), self.rows, label=request.label, kind=request.task,  # pyright: ignore[reportArgumentType]
            split=request.split, group=request.group, mutations=request.mutations, seed=request.seed,
            limit=request.limit, rejects=self.rejects, progress=lambda items: progress(items, "reading"),
        )  # fmt: skip


def finding(request: CircuitRequest) -> "Callable[[Part], None]":
    """For a worker: what measures one part, and keeps it in the work of the run."""
    from isotrace.base.runs import WORK
    from isotrace.base.work import Work
    from isotrace.discovery.tasks.finding import Finding, TaskConfig

    assert request.out is not None  # `helpers_of` has seen to it
    asked = Asked.of(request)
    config, work = request.settings(TaskConfig), Work(request.out / WORK)
    return Finding.of(asked.subject, asked.dictionary, asked.data(request, silent), config, work).do
