"""A way to adapt a subject, and what it gives: one file each in `methods`, known by name."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, silent
from isotrace.base.registry import Registry
from isotrace.base.settings import child_seed
from isotrace.base.work import Work
from isotrace.datasets.annotated import read
from isotrace.datasets.tasks import Example
from isotrace.domains.domain import Domain
from isotrace.subjects.probe import Pool
from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.head import Readout
from isotrace.transfer.adapting.settings import AdaptSettings
from isotrace.transfer.adapting.tasks import TaskTable
from isotrace.transfer.adapting.training import Point


@dataclass(frozen=True, eq=False)
class Job:
    """`spelled[i]`: the ways to write example i of the table, the given one first. `work`: where a training keeps its
    state under the name `name`, so that a killed one goes on; None: nowhere."""

    subject: Subject
    table: TaskTable
    spelled: Sequence[Sequence[Example]]
    settings: AdaptSettings
    name: str
    work: Work | None = None
    progress: Progress = silent

    @property
    def pool(self) -> Pool:
        return "token" if self.table.by_token else self.settings.pool


@dataclass(frozen=True, eq=False)
class Adapted:
    """`subject`: a copy with weights of its own, or the subject itself where `frozen`; `readout` of it. `points`: the
    learning curve, empty where nothing is trained in steps. `n_trained`: weights that were fitted, the head's among
    them. `chosen`: what was chosen by cross-validation, or the step whose weights stand, in words."""

    subject: Subject
    readout: Readout
    points: tuple[Point, ...]
    n_trained: int
    chosen: str
    frozen: bool


Method = Callable[[Job], Adapted]
METHODS: Registry[Method] = Registry(
    "adaptation method",
    "isotrace.adaptations",
    {name: f"isotrace.transfer.adapting.methods.{name}" for name in ("probe", "probe_all", "lora", "full", "scratch")},
)


def adapt(
    subject: Subject, domain: Domain, table: TaskTable, method: str, settings: AdaptSettings, *,
    work: Work | None = None, progress: Progress = silent,
) -> Adapted:  # fmt: skip
    """`subject` stays as it is. Raises SubjectError for one in other digits than float32, InputError for spellings
    where a sequence has one only, and as the methods do."""
    subject.require_float32("adapting it")
    if settings.pool == "token" and not table.by_token:
        raise InputError("--pool token is for labels of atoms or residues, a string of 0 and 1: give mean, max or cls.")
    spelled = respelled(subject, domain, table, settings)
    name = f"{method}-{settings.seed}"
    return METHODS[method](Job(subject, table, spelled, settings, name, work, progress))


def respelled(subject: Subject, domain: Domain, table: TaskTable, settings: AdaptSettings) -> list[list[Example]]:
    """Each example as given and, of those that are learned from, in up to `settings.spellings` other ways that the
    subject can read. Raises InputError for labels of atoms, and where nothing can be written otherwise."""
    found = [[example] for example in table.examples]
    if not settings.spellings:
        return found
    if table.by_token:
        raise InputError("labels of atoms or residues belong to the sequence as it is written: leave --spellings out.")
    members = table.members("train")
    for i in members:
        example = table.examples[i]
        reading = read(subject, domain, example.text)[1]
        texts = [one.text for one in domain.spellings(reading, settings.spellings, child_seed(settings.seed, int(i)))]
        for text, (ids, _, refusal) in zip(texts, subject.tokenized(texts) if texts else (), strict=True):
            if refusal is None and text != example.text:
                found[i].append(replace(example, text=text, ids=np.asarray(ids)))
    if not any(len(found[i]) > 1 for i in members):
        raise InputError(f"a {domain.name} can be written in one way only: leave --spellings out.")
    return found


def copied(subject: Subject) -> Subject:
    """A copy with weights of its own, laid out as transformers saves it: layers that share weights are one again."""
    model = copy.deepcopy(subject.model)
    if subject.task is not None:  # its head was fitted to what the body is about to leave
        model = model.base_model
    if subject.family.restore:
        subject.family.restore(model)
    return Subject(model, subject.tokenizer, subject.files, subject.has_head)  # pyright: ignore[reportArgumentType]


def prepared(subject: Subject) -> Subject:
    """A copy of `copied` as every other subject is when it was loaded."""
    if subject.family.prepare is None:
        return subject
    subject.family.prepare(subject.model)
    return Subject(subject.model, subject.tokenizer, subject.files, subject.has_head)


def n_weights(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
