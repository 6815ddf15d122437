"""What a task circuit is found by, each thing measured when it is asked for and kept, so that others can measure it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, silent
from isotrace.base.settings import checked_seed
from isotrace.base.work import Memo, Work
from isotrace.datasets.tasks import TaskData
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.discovery.method import METHODS
from isotrace.discovery.tasks import ranking as rankings
from isotrace.discovery.tasks import readout as readouts
from isotrace.discovery.tasks import sweep as sweeps
from isotrace.discovery.tasks.basis import Basis, Statistics
from isotrace.discovery.tasks.choice import Half, halves, on_halves
from isotrace.discovery.tasks.ranking import Ranker, check_ranking
from isotrace.discovery.tasks.readout import Readout, checked_metric, fit_readout, target_readout
from isotrace.discovery.tasks.sweep import Anchors, Judge, Proof, Ranked, sizes_on_grid, top
from isotrace.interventions import Attentions, Components, Heads, MLPs, Neurons
from isotrace.stats.bootstrap import interval
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Subject

ROLES = ("features", "neurons")
CONTROLS = 5  # random circuits that are one part of the work
PLAIN: dict[str, type[Components]] = {kind.name: kind for kind in (Neurons, Heads, Attentions, MLPs)}


@dataclass(frozen=True)
class TaskConfig:
    """Settings of a task circuit; every one is written to the manifest.

    mediator: what the circuit is made of, `feature` or one of PLAIN. ranking: see `ranking.RANKINGS`; of other
    mediators than features any method that ranks nodes. sizes: circuits to measure; None = 1, 2 and 5 per decade of
    the share of all features. metric: None = the kind's first, see `readout.ALLOWED`. n_controls: random circuits
    per size. target: what is read instead of a probe fitted here, see `readout.target_readout`.
    """

    mediator: str = "feature"
    ranking: str = "attribution_patching"
    sizes: tuple[int, ...] | None = None
    metric: str | None = None
    n_controls: int = 20
    n_bootstrap: int = 500
    seed: int = 0
    target: str | None = None

    def __post_init__(self) -> None:
        checked_seed(self.seed)


@dataclass(frozen=True)
class Part:
    """`scored`: a ranking on half number `place`, -1 the whole discovery part. Else a circuit of `n`: `halved` on the
    halves, `alone`, or random ones beside it, from number `place` on, alone (`random`) or taken away (`removed`)."""

    kind: Literal["scored", "halved", "alone", "random", "removed"]
    role: int = 0
    n: int = 0
    place: int = 0


@dataclass(frozen=True, eq=False)
class Finding:
    """What a task circuit is found by, each thing computed when it is asked for, and kept in the memo."""

    readout: Readout
    dictionary: Dictionary
    data: TaskData
    config: TaskConfig
    bases: tuple[Basis, Basis]
    sizes: list[int]
    memo: Memo
    progress: Progress

    @classmethod
    def of(
        cls, subject: Subject, dictionary: Dictionary, data: TaskData, config: TaskConfig, work: Work | None,
        progress: Progress = silent,
    ) -> "Finding":  # fmt: skip
        """Raises as `find_circuit`."""
        subject.require_float32("a circuit")
        ready = None if config.target is None else target_readout(subject, data, config.metric, config.target)
        subject = subject if ready is None else ready.subject
        bases = (_parts(subject, dictionary, config), Basis(subject, Neurons(dictionary.config.layers)))
        sizes, most = sizes_on_grid(bases[0].n, config.sizes), bases[0].n
        check_ranking(config.ranking, bases[0], final=not subject.reads)
        if sizes[0] < 1:
            raise InputError(f"a circuit of {sizes[0]} parts was asked for: it needs one at least.")
        if sizes[-1] > most:
            raise InputError(f"a circuit of {sizes[-1]} features was asked for, and there are {most}: ask for less.")
        memo = Memo(work, subject, dictionary, data.kind, data.label, data.parts, _steps(config, ready))
        readout = _stored_readout(subject, data, config, memo) if ready is None else ready
        return cls(readout, dictionary, data, config, bases, sizes, memo, progress)

    @cached_property
    def judge(self) -> Judge:
        config = self.config
        return Judge.of(self.readout, "report", self.data.parts["report"], config.n_bootstrap, config.seed, self.memo)

    @cached_property
    def whole(self) -> np.ndarray:
        """The metric of the subject, `[1 + n_draws]`."""
        return self.judge.subject()

    @property
    def above(self) -> bool:
        """Whether the subject is above chance in all draws but some."""
        return interval(self.whole[1:])[0] > self.judge.chance

    @cached_property
    def rankers(self) -> list[Ranker]:
        given = self.readout, self.config.ranking, self.memo, self.progress
        return [Ranker(role, basis, *given) for role, basis in zip(ROLES, self.bases, strict=True)]

    @cached_property
    def statistics(self) -> list[Statistics]:
        return [ranker.statistics(self.data) for ranker in self.rankers]

    @cached_property
    def anchors(self) -> list[Anchors]:
        """Of a subject that is at chance in some draws no share is printed: all of it would be noise."""
        noise, found = self.judge.noise(self.whole) if self.above else np.inf, []
        for basis, statistics in zip(self.bases, self.statistics, strict=True):
            nothing = basis.split(torch.zeros(0, dtype=torch.long))
            empty = self.judge.circuit(basis, nothing, statistics, "free_running")
            found.append(Anchors(self.whole, empty, self.judge.chance, noise))
        return found

    @cached_property
    def halved(self) -> list[Half]:
        return halves(self.readout, self.data, self.config.seed, self.memo)

    def scores(self, role: int, half: int) -> Tensor:
        """On half number `half`, -1 the whole discovery part."""
        ranker, statistics = self.rankers[role], self.statistics[role]
        if half < 0:
            return ranker.scores(self.data, statistics)
        of = self.halved[half]
        return ranker.scores(of.data, statistics, f" on {of.judge.name}")

    @cached_property
    def ranked(self) -> list[tuple[Ranked, list[Tensor]]]:
        """By role: the ranking on the whole discovery part, and scores on every half."""
        return [
            (
                Ranked(self.bases[role], self.statistics[role], self.scores(role, -1), self.anchors[role]),
                [self.scores(role, half) for half in range(len(self.halved))],
            )
            for role in range(len(ROLES))
        ]

    @cached_property
    def proof(self) -> Proof:
        (features, _), (neurons, _) = self.ranked
        return Proof(self.judge, features, neurons, self.config.n_controls, self.config.seed)

    def first(self) -> list[Part]:
        """After whatever all parts need: the rankings."""
        _ = self.anchors
        return [Part("scored", role, place=half) for role in range(2) for half in range(-1, len(self.halved))]

    def second(self) -> list[Part]:
        """The sizes of the sweep. Sizes that have the same parts, since a basis has no more, are one."""
        sizes = [sorted({min(n, basis.n) for n in self.sizes}) for basis in self.bases]
        every = [(role, n) for role, own in enumerate(sizes) for n in own]
        found = [Part("alone", role, n) for role, n in every]
        found += [one for n in self.sizes for one in self.controls("random", n)]
        return found + ([Part("halved", role, n) for role, n in every] if self.halved else [])

    def controls(self, kind: Literal["random", "removed"], n: int) -> list[Part]:
        return [Part(kind, 0, n, place) for place in range(0, self.config.n_controls, CONTROLS)]

    def do(self, part: Part) -> None:
        """No two parts of `first`, `second` or `controls` measure the same circuit."""
        if part.kind == "scored":
            self.scores(part.role, part.place)
            return
        ranked, scores = self.ranked[part.role]
        if part.kind == "halved":
            on_halves(part.n, self.halved, ranked, scores)
        elif part.kind == "alone":
            for way in ("free_running", "teacher_forced") if part.role == 0 else ("free_running",):
                ranked.best(self.judge, part.n, way)
        else:
            own = repr([kept.tolist() for kept in top(ranked.basis, ranked.scores, part.n)])
            drawn = {repr([kept.tolist() for kept in keep]): keep for keep in self.proof.drawn(part.n)}
            for place, (name, keep) in enumerate(drawn.items()):
                if part.place <= place < part.place + CONTROLS and (part.kind == "removed" or name != own):
                    way = "free_running" if part.kind == "random" else "removed"
                    self.judge.circuit(ranked.basis, keep, ranked.statistics, way)


def _parts(subject: Subject, dictionary: Dictionary, config: TaskConfig) -> Basis:
    """Raises InputError for a mediator that has no components a task circuit could keep."""
    if config.mediator == "feature":
        if is_pooled(dictionary.config.reads):
            raise InputError(
                f"features of {dictionary.config.hookpoint_in} stand for whole sequences, and circuits are of tokens: "
                "train a dictionary at another hookpoint."
            )
        return Basis(subject, Features(dictionary))
    if config.mediator not in PLAIN:
        raise InputError(f"no mediator {config.mediator!r} for a task: give feature, {', '.join(PLAIN)}.")
    return Basis(subject, PLAIN[config.mediator]())


def _steps(config: TaskConfig, ready: Readout | None) -> list[Any]:
    """Settings that what a memo holds depends on, and the `CACHE` numbers of the code."""
    caches = [readouts.CACHE, rankings.CACHE, sweeps.CACHE, config.ranking in METHODS and METHODS[config.ranking].cache]
    steps = [config.mediator, config.ranking, config.metric, config.seed, caches]
    return steps if ready is None or ready.target is None else [*steps, config.target, ready.target.probe]


def _stored_readout(subject: Subject, data: TaskData, config: TaskConfig, memo: Memo) -> Readout:
    """Fitted, or as an earlier run fitted it."""
    made: list[Readout] = []

    def fit() -> np.ndarray:
        made.append(fit_readout(subject, data, config.metric, config.seed))
        found = made[0]
        if found.weight is None or found.bias is None:
            return np.zeros((0, 0))
        return torch.cat([found.weight, found.bias[None]]).numpy()

    stored = memo("readout", fit)
    if made or not stored.size:
        return made[0] if made else fit_readout(subject, data, config.metric, config.seed)
    table = torch.from_numpy(stored)
    return Readout(subject, data.kind, checked_metric(data, config.metric), table[:-1], table[-1])
