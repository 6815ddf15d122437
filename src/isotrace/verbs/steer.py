"""Steer a subject towards a property: fit a direction, calibrate it, design, and compare with random directions."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from isotrace.base.errors import InputError
from isotrace.base.progress import silent
from isotrace.verbs.request import (
    COMMAS,
    PLACE,
    Column,
    Data,
    InFolder,
    Loaded,
    OnSubject,
    Progress,
    Seeded,
    look_at,
    verb,
)
from isotrace.verbs.spreading import OnWorkers, helpers_of

if TYPE_CHECKING:
    from isotrace.interventions.components import Components
    from isotrace.report.steer.steer import SteerResult
    from isotrace.steering.contrast import Contrast
    from isotrace.steering.trials.experiment import Part
    from isotrace.steering.trials.settings import TrialSettings
    from isotrace.subjects.subject import Subject


class SteerRequest(OnSubject, InFolder, Seeded, OnWorkers):
    way_on: ClassVar[str] = "the same command goes on from there"

    data: Annotated[Data, PLACE]
    column: Column = None
    label: str
    """Column of the property: classes, or numbers, whose upper tercile is wanted."""
    positive: str | None = None
    """The class that is wanted; left out, the last of two."""
    group: str | None = None
    """Column of groups that are never split; left out, the domain's (scaffolds, clusters)."""
    pair: str | None = None
    """Column that names pairs of a positive and a negative, for methods that need them."""
    method: str = "difference_in_means"
    """How the direction is found: see `isotrace.steering.directions`."""
    setting: tuple[str, ...] = ()
    """Setting of the method, name=value; repeatable."""
    components: str | None = None
    """Kind of component that is edited (residual, mlp, neuron, …); left out, the method's own."""
    dictionary: Loaded = None
    """Dictionary of the subject, for methods that edit features."""
    layers: Annotated[tuple[int, ...] | None, COMMAS] = None
    """Layers of the components, as 1,2; left out, all."""
    confounds: Literal["residual", "match", "free"] = "residual"
    """Length and kinds of tokens: held fixed, matched between the sides (fewer sequences), or left free."""
    hold: Annotated[tuple[str, ...] | None, COMMAS] = None
    """Confounds to hold or match instead, as length: kinds of tokens are part of a property that is composition."""
    where: Literal["real", "masked", "mutable", "generated", "last"] | None = None
    """Tokens that are edited; left out, the masked ones of a masked subject, of others those the method names."""
    dose: Annotated[tuple[float, ...], COMMAS] = (0.025, 0.05, 0.1, 0.25, 0.5)
    """KL from the unsteered predictions, nats a token."""
    start: Loaded = None
    """Sequences to begin from: a file or one sequence; left out, negative ones that nothing was fitted on."""
    starts: int = Field(default=12, ge=1)
    """At most so many."""
    development: int = Field(default=24, ge=1)
    """Other starts, at most so many, of which nothing is told but up to which dose designs are sound."""
    designs: int = Field(default=4, ge=1)
    """Designs of each start and dose."""
    generator: str | None = None
    """gibbs, mask_predict, likelihood_ranked, sample or beam; left out, one that fits the subject."""
    twins: int = Field(default=20, ge=0)
    """Of every null, at equal dose."""
    nulls: Annotated[tuple[Literal["random", "covariance", "shuffled"], ...], COMMAS] = ("random", "shuffled")
    """What the edit is compared with, by commas: random directions, those within the covariance of the data, those
    that the method finds for shuffled labels."""
    twins_at: Literal["every", "largest"] = "largest"
    """At every dose inside the safe window, or at its largest alone, which is faster."""
    reader: Loaded = None
    """Another subject of the domain, under which designs are to stay likely; left out, that is not checked."""
    out: Path | None = None
    """Run folder; left out, the command takes one in runs/, and with --json or in Python nothing is saved."""

    def look(self) -> None:
        super().look()
        from isotrace.interventions.components import COMPONENTS
        from isotrace.steering.decoding.decoder import DECODERS
        from isotrace.steering.directions.direction import DIRECTIONS

        for registry, name in ((DIRECTIONS, self.method), (DECODERS, self.generator), (COMPONENTS, self.components)):
            if name is not None:
                registry[name]
        if self.dictionary is not None and self.components not in (None, "feature"):
            raise InputError(f"--dictionary has features, not {self.components}s: leave out one of the two.")
        if self.dictionary is None and self.components == "feature":
            raise InputError("features are those of a dictionary: give --dictionary.")
        settings_of(self.setting)
        look_at(self.data, self.column, label=self.label, group=self.group, pair=self.pair)


def settings_of(given: tuple[str, ...]) -> dict[str, Any]:
    """Name → value, numbers and true or false as such. Raises InputError for what is not name=value."""
    found = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise InputError(f"--setting {one!r} sets nothing: write name=value.")
        try:
            plain = json.loads(value)
        except ValueError:
            plain = value
        found[name] = plain if isinstance(plain, int | float) else value
    return found


def reader_of(request: SteerRequest, writer: "Subject") -> "Subject | None":
    """One that names no domain is taken to be of the writer's."""
    from isotrace.subjects.sources.source import resolve
    from isotrace.subjects.subject import Subject, load_subject

    if request.reader is None or isinstance(request.reader, Subject):
        return request.reader
    domain = resolve(str(request.reader), None).domain or writer.files.domain
    return load_subject(request.reader, domain=domain, device=request.device)


@verb(SteerRequest)
def steer(request: SteerRequest, progress: Progress) -> "SteerResult":
    """Steer a subject towards a labelled property, beside random directions of equal dose, and judge the designs.

    Groups of sequences are dealt to three parts: for the direction, for the judge and the doses, and for what is told.
    """
    from contextlib import nullcontext
    from dataclasses import replace

    from isotrace.base.identity import Source
    from isotrace.base.runs import open_run
    from isotrace.report.steer.steer import steer_result
    from isotrace.steering.trials.safety import check_reader
    from isotrace.steering.trials.trial import trial
    from isotrace.verbs.loading import named

    helpers = helpers_of(request, trying, request, progress)
    asked = Asked.of(request)
    subject, reader = asked.subject, asked.reader
    if reader is not None:
        check_reader(reader, subject)
    inputs: dict[str, Any] = {
        "subject": Source.of(subject.source, subject),
        "data": named(request.data, request.column),
    }
    inputs |= {} if request.start is None else {"start": named(request.start)}
    inputs |= {} if reader is None else {"reader": Source.of(reader.source, reader)}
    inputs |= {} if request.dictionary is None else {"dictionary": named(request.dictionary)}
    where = {"command": request.command, "seed": request.seed, "inputs": inputs, "overwrite": request.overwrite}
    with nullcontext() if request.out is None else open_run(request.out, **where) as run:
        starts, refused = asked.starts(request)
        contrast = asked.contrast(request, progress)
        more: dict[str, Any] = {"components": asked.components, "starts": starts, "reader": reader}
        more |= {"nulls": request.nulls, "helpers": helpers}
        found = trial(subject, contrast, asked.settings, **more, work=run and run.work, progress=progress)
        found = replace(found, rejects=(*contrast.rejects, *refused, *found.rejects))
        result = steer_result(found, contrast, subject)
        if run is not None:
            result.write(run)
            names = [f"edits/{path.name}" for path in sorted(found.edits.save(run.path / "edits", subject).iterdir())]
            run.adopt(*names)
    return result


@dataclass(frozen=True, eq=False)
class Asked:
    """What a trial is of, as far as it is known before any sequence is read."""

    subject: "Subject"
    reader: "Subject | None"
    settings: "TrialSettings"
    components: "Components | None"

    @classmethod
    def of(cls, request: SteerRequest) -> "Asked":
        """Raises as the loaders do."""
        from isotrace.dictionaries.features import Features
        from isotrace.interventions.components import COMPONENTS
        from isotrace.steering.trials.settings import TrialSettings
        from isotrace.verbs.loading import dictionary_of, domain_of_subject, subject_of

        subject = subject_of(request)
        domain_of_subject(subject)
        reader = reader_of(request, subject)
        settings = TrialSettings(
            request.method, request.layers or (), request.confounds, request.dose, request.designs, request.starts,
            request.development, request.twins, request.generator, request.seed, settings_of(request.setting),
            request.twins_at, request.hold or (), request.where,
        )  # fmt: skip
        components = None if request.components in (None, "feature") else COMPONENTS[request.components]()
        if request.dictionary is not None:
            components = Features(dictionary_of(request.dictionary, subject))
        return cls(subject, reader, settings, components)

    def starts(self, request: SteerRequest) -> tuple[tuple[str, ...], list[Any]]:
        """(texts, rows that cannot be read)."""
        from isotrace.datasets.inputs import read_inputs

        if request.start is None:
            return (), []
        rows, rejects = read_inputs(request.start)
        return tuple(rows["sequence"].head(request.starts).to_list()), rejects.rows()

    def contrast(self, request: SteerRequest, progress: Progress) -> "Contrast":
        """Raises InputError as `Contrast.read`."""
        from isotrace.steering.contrast import Contrast

        given = {name: getattr(request, name) for name in ("positive", "group", "pair", "column")}
        return Contrast.read(self.subject, request.data, request.label, **given, progress=progress)


def trying(request: SteerRequest) -> "Callable[[Part], None]":
    """For a worker: what makes one part, and keeps it in the work of the run."""
    from isotrace.base.runs import WORK
    from isotrace.base.work import Work
    from isotrace.steering.trials.experiment import Experiment

    assert request.out is not None  # `helpers_of` has seen to it
    asked = Asked.of(request)
    starts, _ = asked.starts(request)
    more: dict[str, Any] = {"components": asked.components, "starts": starts, "reader": asked.reader}
    contrast, work = asked.contrast(request, silent), Work(request.out / WORK)
    return Experiment.of(asked.subject, contrast, asked.settings, **more, work=work).do
