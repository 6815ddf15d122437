"""A subject made to predict a property of one's own, as a subject that every other command opens."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from isotrace.base.errors import InputError
from isotrace.verbs.request import REPEATED, Column, Data, InFolder, Loaded, OnSubject, Progress, Seeded, look_at, verb

if TYPE_CHECKING:
    from isotrace.base.runs import Run
    from isotrace.dictionaries.dictionary import Dictionary
    from isotrace.report.transfer.adapting import AdaptResult
    from isotrace.subjects.subject import Subject
    from isotrace.transfer.adapting.comparison import Compared
    from isotrace.transfer.reuse.reuse import Reuse


class AdaptRequest(OnSubject, InFolder, Seeded):
    data: Data
    label: Annotated[tuple[str, ...], REPEATED]
    """Column of the property: numbers, classes, 0/1 strings per atom or residue; repeatable, empty cells left out."""
    method: str = "lora"
    """probe, probe_all, lora, full or scratch."""
    dictionary: Loaded = None
    """Dictionary of the subject: how much of what it knew the adapted one uses, and where the weights went."""
    out: Path | None = None
    """Run folder, the adapted subject; left out, the command takes one in runs/; with --json or in Python none."""
    column: Column = None
    split: str | None = None
    """Column that names parts: train, valid, test, or train and test. Left out, whole groups are dealt out."""
    group: str | None = None
    """Column of groups that stay together; left out, scaffolds or clusters."""
    task: Literal["class", "regression", "residue"] | None = None
    """Else told from the labels."""
    salts: Literal["strip", "keep"] = "strip"
    """Strip counter-ions, as the property is that of the largest fragment, or keep them."""
    limit: int | None = Field(default=None, ge=20)
    """Sequences to learn from at most, drawn at random, those that stop the training among them."""
    pool: Literal["mean", "max", "mean+max", "cls"] = "mean"
    """How a sequence's tokens become one vector; labels per atom or residue are read token by token."""
    steps: int = Field(default=600, ge=1)
    """Batches that are trained on at most."""
    batch: int = Field(default=32, ge=1)
    """Sequences in a batch."""
    learning_rate: float | None = Field(default=None, gt=0)
    """Largest rate; usual: 1e-3 of adapters (2e-4 above 100 million weights), else 3e-4 (3e-5 from 5 million on)."""
    patience: int = Field(default=10, ge=1)
    """Looks at the validation part without a new best one before the training stops."""
    every: int = Field(default=20, ge=1)
    """Steps between two looks."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the rate from each layer to the one below, of full and scratch."""
    rank: int = Field(default=8, ge=1)
    """Of adapters."""
    spellings: int = Field(default=0, ge=0)
    """Other ways to write every sequence that is learned from (randomised SMILES)."""
    seeds: int = Field(default=1, ge=1, le=100)
    """Trainings with different seeds; the subject that is saved is that of the first."""
    baselines: bool = True
    """Also a training from random weights, both probes (--dictionary needs them anyway), a forest on fingerprints."""
    bootstrap: int = Field(default=1_000, ge=20)
    """Draws of groups and seeds for the intervals."""

    def look(self) -> None:
        super().look()
        from isotrace.transfer.adapting.method import METHODS

        if self.method not in METHODS:
            raise InputError(f"no adaptation method {self.method!r}: give one of {', '.join(METHODS)}.")
        if self.method == "lora":
            from importlib.util import find_spec

            if find_spec("peft") is None:
                raise InputError("--method lora needs peft: pip install 'isotrace[peft]', or take --method full.")
        if isinstance(self.dictionary, str | Path) and not str(self.dictionary).startswith("hf:"):
            from isotrace.dictionaries.config import dictionary_folder

            dictionary_folder(self.dictionary)
        if isinstance(self.data, str) and self.data == "-" and self.out is not None:
            raise InputError("a killed adaptation reads its sequences again: save standard input in a file.")
        for label in self.label:
            look_at(self.data, self.column, label=label, split=self.split, group=self.group)


@verb(AdaptRequest)
def adapt(request: AdaptRequest, progress: Progress) -> "AdaptResult":
    """Adapt a subject to a property, by a probe, by adapters or in full, beside a training from random weights."""
    from contextlib import nullcontext

    from isotrace.base.identity import Source
    from isotrace.base.runs import open_run
    from isotrace.base.work import claimed
    from isotrace.datasets.inputs import read_inputs
    from isotrace.dictionaries.shelf import shelf_of
    from isotrace.report.transfer.adapting import adapt_result
    from isotrace.transfer.adapting.comparison import compared
    from isotrace.transfer.adapting.settings import AdaptSettings
    from isotrace.transfer.adapting.tasks import read_tasks
    from isotrace.transfer.reuse.contributions import require_writes_of_mlps
    from isotrace.transfer.reuse.matrices import matrices
    from isotrace.verbs.loading import dictionary_of, domain_of_subject, label, subject_of, trained_on
    from isotrace.verbs.probe import run_of

    settings = request.settings(AdaptSettings)
    subject = subject_of(request)
    subject.require_float32("adapting it")
    domain, dictionary, name, names, beside = domain_of_subject(subject), None, "", None, []
    where = {**run_of(request, subject), "overwrite": request.overwrite}  # pyright: ignore[reportArgumentType]
    if request.dictionary is not None:
        dictionary, name = dictionary_of(request.dictionary, subject), label(request.dictionary)
        require_writes_of_mlps(dictionary, subject, name)
        names = shelf_of(dictionary).tables
        where["inputs"]["dictionary"] = Source.of(name, dictionary)
        beside = trained_on({name: dictionary}, request.data, request.column)
    rows, rejects = read_inputs(request.data, column=request.column)
    with nullcontext() if request.out is None else open_run(request.out, **where) as run:
        table = read_tasks(
            subject, domain, rows, rejects, request.label, kind=request.task, split=request.split,
            group=request.group, salts=request.salts, limit=request.limit, seed=request.seed, progress=progress,
        )  # fmt: skip
        how: dict[str, Any] = {"n_seeds": request.seeds, "n_bootstrap": request.bootstrap, "progress": progress}
        if not request.baselines:  # reuse is told beside these
            how["baselines"] = () if dictionary is None else ("probe", "untrained")
        with nullcontext() if run is None else claimed(run.work, where["inputs"]) as work:
            found = compared(subject, domain, table, request.method, settings, work=work, **how)
        whose = found.adapted.subject
        if run is not None:
            whose = saved(found, run)
        outputs = found.adapted.readout.outputs(whose, table.examples)
        moved = None if found.adapted.frozen or dictionary is not None else matrices(subject, whose)
        told = None
        if dictionary is not None:
            told = reuse_of(found, subject, whose, dictionary, request, progress)
            moved = None if found.adapted.frozen else told.matrices
        result = adapt_result(
            found, subject, domain, settings, outputs, reuse=told, dictionary=name, names=names, matrices=moved,
            beside=beside,
        )  # fmt: skip
        if run is not None:
            result.write(run)
    return result


def reuse_of(
    found: "Compared", subject: "Subject", adapted: "Subject", dictionary: "Dictionary", request: AdaptRequest,
    progress: Progress,
) -> "Reuse":  # fmt: skip
    """`adapted`: the subject of the first seed."""
    from isotrace.transfer.reuse.reading import State
    from isotrace.transfer.reuse.reuse import reuse

    before, blank = (found.entries[name].adapted for name in ("probe", "untrained"))
    assert before is not None  # `adapt` asks for both
    assert blank is not None
    return reuse(
        State("before", subject, before.readout), State("after", adapted, found.adapted.readout),
        State("untrained", blank.subject, blank.readout), dictionary, found.part.table,
        seed=request.seed, n_bootstrap=request.bootstrap, progress=progress,
    )  # fmt: skip


def saved(found: "Compared", run: "Run") -> "Subject":
    """The adapted subject, written into the run and read from there: what is told of it holds for what is on disk."""
    from tempfile import TemporaryDirectory

    from isotrace.subjects.subject import load_subject
    from isotrace.transfer.adapting.saving import save_adapted

    made = found.adapted
    with TemporaryDirectory() as place:
        folder = Path(place)
        names = save_adapted(made.subject, made.readout, found.part.table, folder, by=found.method, frozen=made.frozen)
        for name in names:
            run.bytes(name, (folder / name).read_bytes())
    return load_subject(run.path, domain=made.subject.files.domain, device=str(made.subject.device))
