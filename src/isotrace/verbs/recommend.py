"""Which of several checkpoints to take for a property of one's own, or that it cannot be told."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from isotrace.base.errors import InputError
from isotrace.verbs.request import Column, Data, InFolder, Loaded, Progress, Seeded, Shell, look_at, verb

if TYPE_CHECKING:
    from isotrace.report.transfer.recommending import RecommendResult


class RecommendRequest(InFolder, Seeded):
    subjects: Annotated[tuple[Loaded, ...], Shell(place=True, commas=True)]
    """Checkpoints, by commas: bundled:molm, pypi:rxnfp/bert_pretrained, hf:org/name or folders."""
    data: Data
    label: str
    """Column of the property: numbers or classes, empty cells left out."""
    corpus: Loaded = None
    """Sequences like those the checkpoints were trained on; left out, whether yours are is not checked."""
    domain: str | None = None
    """What tokens stand for, where a subject does not say."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?)$")
    """auto (a GPU where there is one), cpu, cuda or cuda:1."""
    out: Path | None = None
    """Run folder; left out, the command takes one in runs/, and with --json or in Python nothing is saved."""
    column: Column = None
    group: str | None = None
    """Column of groups that are held out whole; left out, scaffolds or clusters."""
    task: Literal["class", "regression"] | None = None
    """Else told from the labels."""
    salts: Literal["strip", "keep"] = "strip"
    """Strip counter-ions, as the property is that of the largest fragment, or keep them."""
    folds: int = Field(default=5, ge=3)
    """Parts that are held out in turn, at most; there are no more than groups."""
    bootstrap: int = Field(default=1_000, ge=20)
    """Draws of groups for the intervals."""

    def look(self) -> None:
        super().look()
        if not self.subjects:
            raise InputError("there is no checkpoint to choose: give one or more, by commas.")
        for one in self.subjects:
            if isinstance(one, str | Path):
                from isotrace.subjects.sources.source import look

                look(str(one))
        if self.domain is not None:
            from isotrace.domains.domain import domain_of

            domain_of(self.domain)
        look_at(self.data, self.column, label=self.label, group=self.group)


@verb(RecommendRequest)
def recommend(request: RecommendRequest, progress: Progress) -> "RecommendResult":
    """Tell which of several checkpoints to take for a property, or a forest on fingerprints, or that nobody can tell.

    A probe of each, of an untrained copy and a forest predict rows of groups that they were not fitted on.
    """
    from contextlib import nullcontext

    from isotrace.base.identity import Source
    from isotrace.base.runs import open_run
    from isotrace.datasets.inputs import read_inputs
    from isotrace.datasets.replicates import cleaned
    from isotrace.datasets.tasks import labelled
    from isotrace.report.transfer.recommending import recommend_result
    from isotrace.transfer.recommending.recommend import recommend as recommended
    from isotrace.verbs.corpus import usable
    from isotrace.verbs.loading import domain_of_subject, named, subjects_of

    subjects = subjects_of(request.subjects, request.domain, request.device)
    first = next(iter(subjects.values()))
    domains = {name: domain_of_subject(subject) for name, subject in subjects.items()}
    domain = next(iter(domains.values()))
    if other := next((name for name, one in domains.items() if one.name != domain.name), None):
        raise InputError(
            f"{next(iter(subjects))} reads {domain.name}s and {other} {domains[other].name}s: give one sort."
        )
    for subject in subjects.values():
        subject.require_float32("a probe")
    rows, rejects = read_inputs(request.data, column=request.column)
    clean = cleaned(rows, rejects, domain, label=request.label, split=None, salts=request.salts, kind=request.task)
    corpus, unread = ([], None) if request.corpus is None else usable(first, request.corpus, None, None)
    inputs: dict[str, Any] = {f"subject {n}": Source.of(s.source, s) for n, s in enumerate(subjects.values(), start=1)}
    inputs |= {"data": named(request.data, request.column)}
    inputs |= {} if request.corpus is None else {"corpus": named(request.corpus)}
    where = {"command": request.command, "seed": request.seed, "inputs": inputs, "overwrite": request.overwrite}
    with nullcontext() if request.out is None else open_run(request.out, **where) as run:
        tables = {
            name: labelled(
                subject, domain, clean.rows, label=request.label, kind=request.task, split=None, group=request.group,
                mutations=None, mixed=True, rejects=clean.rejects,
                progress=lambda items, name=name: progress(items, f"reading for {name}"),
            )
            for name, subject in subjects.items()
        }  # fmt: skip
        how: dict[str, Any] = {"n_folds": request.folds, "n_draws": request.bootstrap, "seed": request.seed}
        found = recommended(subjects, domain, tables, corpus=corpus, **how, progress=progress)
        result = recommend_result(found, domain, clean, len(corpus), 0 if unread is None else unread.height)
        if run is not None:
            result.write(run)
    return result
