"""What do the features of a dictionary mean, and should one believe it?"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from isotrace.base.errors import InputError
from isotrace.base.progress import silent
from isotrace.verbs.request import COMMAS, REPEATED, Loaded, OnDictionary, Progress, Seeded, look_at, verb
from isotrace.verbs.spreading import OnWorkers, helpers_of

if TYPE_CHECKING:
    import polars as pl

    from isotrace.annotation.steps import Step
    from isotrace.datasets.annotated import Data
    from isotrace.datasets.concept_files import ConceptSource
    from isotrace.dictionaries.dictionary import Dictionary
    from isotrace.domains.domain import Domain
    from isotrace.report.atlas.annotation import AnnotationResult
    from isotrace.subjects.subject import Subject


class AnnotateRequest(OnDictionary, Seeded, OnWorkers):
    way_on = "the same command goes on from there"
    out: Path | None = None
    """Run folder; left out, the command takes one in runs/, and with --json or in Python nothing is saved."""
    concepts: Annotated[tuple[Path, ...], REPEATED] = ()
    """Concept file: patterns or labels; repeatable."""
    label: Annotated[tuple[str, ...], REPEATED] = ()
    """A column of the data as a concept, KIND:COLUMN[:NAME]; repeatable."""
    group: str | None = None
    """Column of groups that a split keeps together."""
    limit: int | None = Field(default=None, ge=1)
    """Take only the first rows."""
    sources: Annotated[tuple[str, ...], COMMAS] = ("dictionary", "neurons", "untrained", "random", "token_identity")
    """What stands beside the dictionary, by commas."""
    untrained: Loaded = None
    """Dictionary of the untrained subject with --seed, instead of training one."""
    untrained_tokens: int = Field(default=400_000, ge=1)
    """Tokens the untrained subject's one is trained on."""
    permutations: int = Field(default=500, ge=20)
    """Shuffles of the labels behind every p."""
    bootstrap: int = Field(default=200, ge=20)
    """Draws of sequences for the intervals."""
    min_positive: int = Field(default=20, ge=1)
    """Tokens a concept needs on each side."""
    spellings: int = Field(default=3, ge=0)
    """Other spellings per sequence, for stability."""
    effects: bool = True
    """Ablate each feature once to see what it does to the output."""
    structure: Path | None = None
    """PDB or mmCIF file whose chain is among the sequences."""
    explain: str | None = None
    """URL of an OpenAI-compatible endpoint; off by default."""
    explain_model: str | None = None
    """Model name at that endpoint."""
    explain_features: int = Field(default=50, ge=1)
    """Features to explain, unexplained first."""
    explain_key: str = "OPENAI_API_KEY"
    """Environment variable that holds the key."""
    attach: bool = False
    """Put the names on the dictionary's shelf."""

    def look(self) -> None:
        super().look()
        if self.explain is not None and not self.explain_model:
            raise InputError("--explain needs --explain-model: name a model of that endpoint.")
        if self.out is None and (self.attach or self.explain is not None):
            raise InputError("--attach and --explain need a run folder: give its --out.")
        look_at(self.data, self.column, group=self.group)


@verb(AnnotateRequest)
def annotate(request: AnnotateRequest, progress: Progress) -> "AnnotationResult":
    """Name features in the domain's terms, with statistics, beside neurons, an untrained subject and more nulls."""
    from functools import partial
    from tempfile import TemporaryDirectory

    from isotrace.annotation.annotate import AnnotationConfig
    from isotrace.annotation.annotate import annotate as annotated
    from isotrace.annotation.nulls.sources import feature_activations
    from isotrace.dictionaries.shelf import attach, shelf_folder
    from isotrace.report.atlas.annotation import AnnotationResult
    from isotrace.subjects.heads.pooled import is_pooled
    from isotrace.verbs.loading import label, opened, trained_on

    seed = request.seed
    config = request.settings(AnnotationConfig)
    shelf = shelf_folder(request.dictionary) if request.attach else None
    helpers = helpers_of(request, annotating, request, progress)
    asked = Asked.of(request)
    subject, dictionary = asked.subject, asked.dictionary
    if request.explain is not None and is_pooled(dictionary.config.reads):
        raise InputError(
            "explanations are written from activations of tokens, and these are of sequences: no --explain."
        )
    name = label(request.dictionary)
    inputs = {} if request.structure is None else {"structure": request.structure}
    inputs |= {f"concepts {place}": path for place, path in enumerate(request.concepts, start=1)}
    with opened(request, request.out, subject, dictionary, **inputs) as run, TemporaryDirectory() as scratch:
        prepared = asked.data(request, progress)
        work = Path(scratch) if run is None else run.work
        named = {"name_of": name, "untrained": asked.untrained, "helpers": helpers}
        annotation = annotated(subject, dictionary, prepared, work, config, **named, progress=progress)
        annotation.summary["warnings"] += trained_on({name: dictionary}, request.data, request.column)
        activations = partial(feature_activations, subject, dictionary)
        result = AnnotationResult.of(annotation, prepared, structure=request.structure, activations=activations)
        if run is not None:
            result.write(run)
        if run is not None and request.explain is not None:
            from isotrace.annotation.explain.chat import Chat
            from isotrace.annotation.explain.explain_features import explain_features

            place = run.path.resolve()  # "." has no name
            cache = place.with_name(f"{place.name}.answers.jsonl")
            chat = Chat(request.explain, request.explain_model or "", cache=cache, key_variable=request.explain_key)
            explained = explain_features(
                annotation.features, annotation.associations, prepared, subject, dictionary, chat,
                n_features=request.explain_features, seed=seed, progress=progress,
            )  # fmt: skip
            result = result.explained(explained)
            result.write(run)
    if shelf is not None and request.out is not None:
        attach("names", shelf, dictionary, request.out)
    return result


@dataclass(frozen=True, eq=False)
class Asked:
    """What an annotation is of, as far as it is known before any sequence is read."""

    subject: "Subject"
    dictionary: "Dictionary"
    untrained: "tuple[Subject, Dictionary] | None"
    domain: "Domain"
    rows: "pl.DataFrame"
    rejects: "pl.DataFrame"
    concepts: "tuple[ConceptSource, ...]"

    @classmethod
    def of(cls, request: AnnotateRequest) -> "Asked":
        """Raises as the readers of all that do."""
        from isotrace.annotation.nulls.sources import untrained_subject
        from isotrace.datasets.concept_files import label_columns, read_concept_file
        from isotrace.datasets.inputs import read_inputs
        from isotrace.verbs.loading import dictionary_of, domain_of_subject, subject_of

        subject = subject_of(request)
        domain, dictionary = domain_of_subject(subject), dictionary_of(request.dictionary, subject)
        rows, rejects = read_inputs(request.data, column=request.column)
        rows = rows if request.limit is None else rows.head(request.limit)
        given = [read_concept_file(path, domain) for path in request.concepts]
        given += [label_columns(rows, request.label, domain)] if request.label else []
        maps = {text: mapped for source in given if source.maps for text, mapped in source.maps.items()}
        if maps:
            domain = domain.with_maps(maps)  # pyright: ignore[reportAttributeAccessIssue]
        blank = None
        if request.untrained is not None:
            other = untrained_subject(subject, request.seed)
            blank = (other, dictionary_of(request.untrained, other))
        return cls(subject, dictionary, blank, domain, rows, rejects, tuple(given))

    def data(self, request: AnnotateRequest, progress: Progress) -> "Data":
        """Every sequence read. Raises InputError as `prepare`."""
        from isotrace.datasets.annotated import prepare

        return prepare(
            self.subject, self.domain, self.rows, self.concepts, seed=request.seed, group_column=request.group,
            rejects=self.rejects, progress=lambda items: progress(items, "reading"),
        )  # fmt: skip


def annotating(request: AnnotateRequest) -> "Callable[[Step], None]":
    """For a worker: what does one step in the work of the run."""
    from isotrace.annotation.annotate import AnnotationConfig, steps_of
    from isotrace.base.runs import WORK

    assert request.out is not None  # `helpers_of` has seen to it
    asked, config = Asked.of(request), request.settings(AnnotationConfig)
    data = asked.data(request, silent)
    return steps_of(asked.subject, asked.dictionary, data, request.out / WORK, config, asked.untrained).do
