"""A subject and its readout read in dictionaries, sequence by sequence: what is explained, what outputs are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from scipy import sparse

from isotrace.base.progress import Progress, silent
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.stats.share import share
from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.head import Readout
from isotrace.transfer.adapting.tasks import TaskTable
from isotrace.transfer.reuse.contributions import Contributions, Encoded, contributions, encoded, gradients
from isotrace.transfer.reuse.targets import masked_token, outputs_of


@dataclass(frozen=True, eq=False)
class State:
    """A subject and what reads the properties from it."""

    name: str
    subject: Subject
    readout: Readout


@dataclass(frozen=True, eq=False)
class Explained:
    """Of n sequences and the layers of a dictionary: `residual [n, layers]` squared error of what it writes, `square
    [n, layers]` and `sums [n, layers, d]` of what it should write, `tokens [n]`."""

    residual: np.ndarray
    square: np.ndarray
    sums: np.ndarray
    tokens: np.ndarray

    def fve(self, weights: np.ndarray) -> np.ndarray:
        """`[draws, 1 + layers]` of draws of sequences `weights [draws, n]`: of all layers together, then of each. The
        variance is about the mean over all sequences as they are."""
        mean = self.sums.sum(0) / self.tokens.sum()
        total = self.square - 2 * (self.sums * mean).sum(-1) + self.tokens[:, None] * (mean**2).sum(-1)
        residual, total = (np.concatenate([x.sum(1, keepdims=True), x], 1) for x in (self.residual, total))
        return 1 - share(weights @ residual, weights @ total, 0.0)


@dataclass(frozen=True, eq=False)
class Made:
    """Of what one output is made on n sequences. `sums [n, 3]`: Σ|feature|, Σ|error|, and Σ over nodes (a layer at a
    token) of |what all features add there|. By feature `[layers, F]`, over all sequences: Σ|contribution|,
    Σ contribution, Σ activation."""

    sums: np.ndarray
    absolute: np.ndarray
    signed: np.ndarray
    activation: np.ndarray

    @classmethod
    def empty(cls, n: int, dictionary: Dictionary) -> "Made":
        shape = dictionary.config.n_layers, dictionary.config.n_features
        return cls(np.zeros((n, 3)), *(np.zeros(shape) for _ in range(3)))

    def add(self, i: int, found: Contributions) -> None:
        self.sums[i] += [np.abs(x).sum() for x in (found.features, found.errors, found.nodes)]
        at = found.layer, found.feature
        np.add.at(self.absolute, at, np.abs(found.features))
        np.add.at(self.signed, at, found.features)
        np.add.at(self.activation, at, found.activation)

    def reuse(self, weights: np.ndarray) -> np.ndarray:
        """Σ|features| / (Σ|features| + Σ|errors|) of draws of sequences `weights [draws, n]`."""
        features, errors, _ = (weights @ self.sums).T
        return share(features, features + errors, 0.0)

    def net(self, weights: np.ndarray) -> np.ndarray:
        """The same of nodes, in which features that cancel out add nothing."""
        _, errors, nodes = (weights @ self.sums).T
        return share(nodes, nodes + errors, 0.0)


@dataclass(frozen=True, eq=False)
class Read:
    """`made[name, label]` and `explained[name]` of every dictionary. Of the first one `active [tokens, layers · F]`,
    all activations, and `pretraining`, of a masked token of each sequence; None where none was asked for, or the
    subject predicts none."""

    made: dict[tuple[str, str], Made]
    explained: dict[str, Explained]
    active: sparse.csc_array
    pretraining: Made | None

    @property
    def fired(self) -> np.ndarray:
        """`[layers · F]`: tokens on which each feature is active."""
        return np.diff(self.active.indptr)


def read(
    state: State, dictionaries: Mapping[str, Dictionary], table: TaskTable, members: Sequence[int], seed: int, *,
    pretraining: bool = False, progress: Progress = silent,
) -> Read:  # fmt: skip
    """The examples `members` of `table`; the same seed takes the same tokens."""
    subject, names = state.subject, [*dictionaries]
    rng, n, own = np.random.default_rng((seed, 17)), len(members), [*dictionaries.values()]
    labels = [prop.label for prop in table.properties]
    made = {(name, label): Made.empty(n, one) for name, one in dictionaries.items() for label in labels}
    masked, any_masked = Made.empty(n, own[0]), False
    stats: dict[str, list[tuple[np.ndarray, ...]]] = {name: [] for name in names}
    active: list[sparse.csr_array] = []
    for i, member in enumerate(progress([*members], f"taking apart {state.name}")):
        example = table.examples[member]
        batch = subject.tokenize([example.text])
        known = encoded(subject, own, batch)
        for name, one in zip(names, known, strict=True):
            stats[name].append(_moments(one))
        active.append(_active(known[0]))
        wanted = [*outputs_of(subject, state.readout, table, example, rng)]
        found = gradients(subject, batch, [target for _, target in wanted])
        for (label, _), gradient in zip(wanted, found, strict=True):
            for name, one in zip(names, known, strict=True):
                made[name, label].add(i, contributions(one, gradient))
        if pretraining and (asked := masked_token(subject, batch, rng)) is not None:
            hidden, target = asked
            (one,) = encoded(subject, own[:1], hidden)
            masked.add(i, contributions(one, gradients(subject, hidden, [target])[0]))
            any_masked = True
    explained = {
        name: Explained(*(np.stack(column) for column in zip(*rows, strict=True))) for name, rows in stats.items()
    }
    every = sparse.csc_array(sparse.vstack(active))
    return Read(made, explained, every, masked if any_masked else None)


def _moments(known: Encoded) -> tuple[np.ndarray, ...]:
    """One sequence's part of `Explained`."""
    y = known.truth.double()
    found = known.errors.double().square().sum((1, 2)), y.square().sum((1, 2)), y.sum(1)
    return (*(x.cpu().numpy() for x in found), np.asarray(y.shape[1]))


def _active(known: Encoded) -> sparse.csr_array:
    """`[tokens, layers · F]`."""
    n = known.dictionary.config.n_features
    parts = [sparse.csr_array(a.dense(n).clamp(min=0).double().cpu().numpy()) for a in known.active]
    return sparse.csr_array(sparse.hstack(parts))


def correlations(one: sparse.csc_array, other: sparse.csc_array) -> np.ndarray:
    """Pearson's, over tokens, of every column of two matrices `[tokens, columns]`; NaN where one is constant."""
    n, _ = cast(tuple[int, int], one.shape)
    means, squares = zip(*((x.mean(0), x.multiply(x).sum(0)) for x in (one, other)), strict=True)
    spread = [s - n * m**2 for s, m in zip(squares, means, strict=True)]
    covariance = one.multiply(other).sum(0) - n * means[0] * means[1]
    # what is left of a constant is rounding
    flat = (spread[0] <= 1e-12 * squares[0]) | (spread[1] <= 1e-12 * squares[1])
    whole = np.where(flat, 0.0, np.sqrt(np.abs(spread[0] * spread[1])))
    return share(covariance, whole, 0.0)
