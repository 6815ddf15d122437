"""What a predictor is given: pooled states of a checkpoint on the labelled sequences of a task's training part."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, silent
from isotrace.base.settings import checked_seed
from isotrace.datasets.tasks import Example
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.domains.domain import Domain, domain_of
from isotrace.probing.crossed import metrics_of
from isotrace.probing.folds import Folds, folds_of
from isotrace.probing.linear import Task
from isotrace.probing.probe import LEAST
from isotrace.probing.states import pooled_states
from isotrace.stats.metrics import METRICS
from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.method import n_weights

FOLDS, BINS = 5, 5


@dataclass(frozen=True, eq=False)
class Basis:
    """A subject and what its activations are written in."""

    subject: Subject
    dictionary: Dictionary


@dataclass(frozen=True, eq=False)
class Evidence:
    """Of N sequences: `embeddings [N, D]`, the mean over tokens of the final hidden state, and of every layer, `layers`
    (0 is what the first block reads); float64. `y [N]`: numbers, or class indices from 0 on, as `kind` says. `groups
    [N]`: names of groups of relatives, which are held out whole.

    `texts`, `subject`, `domain`: where there are any; a planted world has none. `tokens_seen`: in pretraining, NaN
    where not known. `corpus`: sequences like those of the pretraining, the same for all that is compared. `width`: the
    smallest D of all that is compared, see `alike`. `features`: pooled activations `[N, F]` in
    every basis, and the `bases` themselves, see `features.bases`.

    Raises InputError for fewer than LEAST sequences, shapes that do not fit, values that are not finite and labels that
    are all alike or no class indices.
    """

    embeddings: np.ndarray
    layers: tuple[np.ndarray, ...]
    y: np.ndarray
    kind: Task
    groups: np.ndarray
    texts: tuple[str, ...] = ()
    subject: Subject | None = None
    domain: Domain | None = None
    seed: int = 0
    tokens_seen: float = np.nan
    corpus: tuple[str, ...] = ()
    width: int | None = None
    features: Mapping[str, np.ndarray] = field(default_factory=dict)
    bases: Mapping[str, Basis] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked_seed(self.seed)
        n, matrices = len(self.y), {"embeddings": self.embeddings, **self.features}
        matrices |= {f"layer {i}": x for i, x in enumerate(self.layers)}
        if n < LEAST:
            raise InputError(f"{n} labels are too few to predict anything from: give at least {LEAST}.")
        for name, x in matrices.items():
            if x.ndim != 2 or len(x) != n or not np.isfinite(x).all():
                raise InputError(f"{name} {x.shape} of {n} labels: give a finite row for each.")
        if len(self.groups) != n or (self.texts and len(self.texts) != n):
            raise InputError(f"{len(self.groups)} groups, {len(self.texts)} texts of {n} labels: give one for each.")
        if not np.isfinite(self.y).all() or len(np.unique(self.y)) < 2:
            raise InputError("the labels are not finite, or all alike: leave out what was not measured.")
        if self.kind == "classification" and not np.array_equal(np.unique(self.y), np.arange(len(np.unique(self.y)))):
            raise InputError("labels of classes are their indices from 0 on, none left out: number the classes anew.")

    @classmethod
    def of(
        cls, subject: Subject, texts: Sequence[str], y: Sequence[float] | np.ndarray, kind: Task, *, seed: int,
        groups: Sequence[str] | None = None, progress: Progress = silent, **given: Any,
    ) -> "Evidence":  # fmt: skip
        """`groups` None: those of the subject's domain. `given`: what a subject does not know, see the class. Raises
        InputError as `Subject.tokenize` and the class do, and for a subject of no domain without groups."""
        domain = None if subject.files.domain is None else domain_of(subject.files.domain)
        if groups is None:
            if domain is None:
                raise InputError(f"{subject.source} has no domain that could group sequences: give groups.")
            groups = domain.groups(texts)
        every = range(subject.n_layers + 1)
        states = pooled_states(subject, examples_of(subject, texts), [*every], "mean", progress).astype(np.float64)
        layers = tuple(np.split(states, len(every), 1))
        return cls(
            layers[-1], layers, np.asarray(y, np.float64), kind, np.asarray(groups), tuple(texts), subject, domain,
            seed, **given,
        )  # fmt: skip

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Empty of numbers."""
        return tuple(f"{k:g}" for k in np.unique(self.y)) if self.kind == "classification" else ()

    @cached_property
    def targets(self) -> np.ndarray:
        """float64 `[N, targets]`: numbers, or 0 and 1; of three classes and more a column for each against the rest."""
        if len(self.classes) < 3:
            return self.y[:, None].astype(np.float64)
        return (self.y[:, None] == np.arange(len(self.classes))).astype(np.float64)

    @cached_property
    def bins(self) -> np.ndarray:
        """int64 `[N]`, from 0 on: the class, or which of BINS quantile bins a number falls into."""
        if self.kind == "classification":
            return self.y.astype(np.int64)
        edges = np.quantile(self.y, np.arange(1, BINS) / BINS)
        return np.unique(np.searchsorted(edges, self.y, side="right"), return_inverse=True)[1]

    @cached_property
    def folds(self) -> Folds:
        """Raises InputError as `folds_of` does."""
        return folds_of(self.kind, self.y, self.groups, self.classes, FOLDS, self.seed)

    @cached_property
    def flops_per_pass(self) -> float:
        """2 · weights · mean number of tokens, of one sequence; NaN without a subject or texts."""
        if self.subject is None or not self.texts:
            return np.nan
        return 2.0 * n_weights(self.subject.model) * float(self.subject.tokenize(self.texts).mask.sum(1).float().mean())

    def worth(self, outputs: np.ndarray) -> float:
        """R² of numbers, AUROC of two classes, its mean over classes of more, of `outputs [N, outputs]`; rows without
        a prediction are left out."""
        held = np.isfinite(outputs).all(1)
        metric = "r2" if self.kind == "regression" else metrics_of(self.kind, self.classes)[0]
        return float(METRICS[metric](outputs[held], self.y[held], np.ones((1, int(held.sum()))))[0])


def alike(compared: Sequence[Evidence]) -> list[Evidence]:
    """The same, of which each knows the smallest D of them all."""
    width = min(one.embeddings.shape[1] for one in compared)
    return [replace(one, width=width) for one in compared]


def examples_of(subject: Subject, texts: Sequence[str]) -> list[Example]:
    """Without labels and groups. Raises InputError as `Subject.tokenize`."""
    rows = subject.tokenized(texts)
    if refusal := next((why for *_, why in rows if why), None):
        raise InputError(refusal)
    pairs = zip(texts, rows, strict=True)
    return [Example(i, text, np.asarray(ids), "", np.nan) for i, (text, (ids, *_)) in enumerate(pairs)]
