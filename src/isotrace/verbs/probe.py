"""Does the subject know a property, and the probe that reads it: what `--target probe:DIR` explains."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from isotrace.verbs.request import COMMAS, Column, Data, InFolder, OnSubject, Progress, Seeded, look_at, verb

if TYPE_CHECKING:
    from isotrace.report.probe import ProbeResult
    from isotrace.subjects.subject import Subject


class ProbeRequest(OnSubject, InFolder, Seeded):
    data: Data
    label: str
    """Column of the property: numbers, classes, or 0/1 strings per atom or residue."""
    out: Path | None = None
    """Run folder; left out, the command takes one in runs/, and with --json or in Python nothing is saved."""
    column: Column = None
    layers: Annotated[
        tuple[int, ...] | None, COMMAS, BeforeValidator(lambda given: None if given == "all" else given)
    ] = None
    """Hidden states to read by commas, 0 (embeddings) to the number of layers (the final one); usual: all."""
    pool: Literal["mean", "max", "mean+max", "cls", "token"] = "mean"
    """How a sequence's tokens become one vector; labels per atom or residue are read token by token."""
    split: str | None = None
    """Column that names parts: train, valid, test. Left out, whole groups are held out in turn."""
    group: str | None = None
    """Column of groups that are held out together; left out, scaffolds or clusters."""
    task: Literal["class", "regression", "residue"] | None = None
    """Else told from the labels."""
    positive: str | None = None
    """Of two classes, that whose log-odds is read; left out, the second in the alphabet."""
    name: str | None = None
    """What the probe is called; left out, the label."""
    unit: str | None = None
    """Unit of the property (log mol/l), told with every effect."""
    salts: Literal["strip", "keep"] = "strip"
    """Strip counter-ions, as the property is that of the largest fragment, or keep them."""
    baselines: bool = True
    """Also an untrained copy of the subject, token counts and a forest on fingerprints."""
    folds: int = Field(default=5, ge=3, le=20)
    """Parts that are held out in turn."""
    bootstrap: int = Field(default=1_000, ge=20)
    """Draws of groups for the intervals."""

    def look(self) -> None:
        super().look()
        look_at(self.data, self.column, label=self.label, split=self.split, group=self.group)


@verb(ProbeRequest)
def fit_probe(request: ProbeRequest, progress: Progress) -> "ProbeResult":
    """Fit a linear probe of a property to a subject's hidden states, and tell whether the subject knows it at all."""
    from contextlib import nullcontext

    from isotrace.base.runs import open_run
    from isotrace.datasets.inputs import read_inputs
    from isotrace.datasets.replicates import cleaned
    from isotrace.datasets.tasks import labelled
    from isotrace.probing.probe import ProbeSettings
    from isotrace.probing.probe import fit_probe as fit
    from isotrace.report.probe import probe_result
    from isotrace.verbs.loading import domain_of_subject, subject_of

    settings = ProbeSettings(
        request.layers, request.pool, request.folds, request.bootstrap, request.baselines, request.seed
    )  # fmt: skip
    subject = subject_of(request)
    subject.require_float32("a probe")
    domain = domain_of_subject(subject)
    rows, rejects = read_inputs(request.data, column=request.column)
    asked = {"label": request.label, "split": request.split, "salts": request.salts, "kind": request.task}
    table = cleaned(rows, rejects, domain, **asked)
    where = {**run_of(request, subject), "overwrite": request.overwrite}
    with nullcontext() if request.out is None else open_run(request.out, **where) as run:
        data = labelled(
            subject, domain, table.rows, label=request.label, kind=request.task, split=request.split,
            group=request.group, mutations=None, mixed=True, rejects=table.rejects,
            progress=lambda items: progress(items, "reading"),
        )  # fmt: skip
        found = fit(
            subject, domain, data, settings, name=request.name or request.label, unit=request.unit,
            split=request.split, positive=request.positive, progress=progress,
        )  # fmt: skip
        result = probe_result(found, subject, domain, table)
        if run is not None:
            result.write(run)
    return result


def run_of(request: ProbeRequest, subject: "Subject") -> dict[str, Any]:
    """What the run depends on."""
    from isotrace.base.identity import Source
    from isotrace.verbs.loading import named

    inputs = {"subject": Source.of(subject.source, subject), "data": named(request.data, request.column)}
    return {"command": request.command, "seed": request.seed, "inputs": inputs}
