"""What circuits keep of the task metric on some of its sequences, beside their controls.

    kept share    (M(circuit) − chance) / (M(subject) − chance), the `sufficiency` of a circuit
    faithfulness  (M(circuit) − M(∅)) / (M(subject) − M(∅)), ∅ = every part at its mean
    fall          (M(subject) − M(subject without the circuit)) / (M(subject) − chance), the `necessity`

Intervals are 95 % percentile bootstrap intervals over groups; subject, circuit and ∅ are drawn together. Random
circuits take from each layer as many parts as the circuit has there, each among those closest in how often they are
active; their interval draws circuits as well as groups. Nothing is clipped; a share of a whole that is no more than
rounding is NaN.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from isotrace.base.work import Memo
from isotrace.datasets.tasks import Example, batches
from isotrace.discovery.passes import Made
from isotrace.discovery.tasks.basis import Basis, Keep, Statistics
from isotrace.discovery.tasks.readout import BATCH_TOKENS, Readout
from isotrace.stats.bootstrap import group_weights, interval
from isotrace.stats.matching import log_frequency
from isotrace.stats.matching import matched as matched_draws
from isotrace.stats.share import share
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.subject import Batch

Way = Literal["free_running", "teacher_forced", "removed"]
CACHE = 1  # raised when a circuit, or what it is made of, is computed differently


@dataclass(frozen=True, eq=False)
class Judge:
    """Examples that circuits are measured on; `name` tells them apart in the memo. `weights [1 + n_draws, n]`: the
    examples as they are, then bootstrap draws."""

    readout: Readout
    name: str
    examples: Sequence[Example]
    y: np.ndarray
    weights: np.ndarray
    memo: Memo

    @classmethod
    def of(
        cls, readout: Readout, name: str, examples: Sequence[Example], n_draws: int, seed: int, memo: Memo
    ) -> "Judge":
        y, groups = readout.labels(examples)
        return cls(readout, name, examples, y, group_weights(groups, n_draws, (seed, 3)), memo)

    @property
    def chance(self) -> float:
        return self.readout.chance(self.y)

    def predictions(self, run: Callable[[Batch], Tensor], tokens: int = BATCH_TOKENS) -> np.ndarray:
        """`[n, outputs]` from `run(batch)`, which gives final hidden states of batches of about `tokens` tokens."""
        made = batches(self.examples, tokens, self.readout.subject)
        return self._outputs((rows, batch, run(batch)) for rows, batch in made)

    @torch.no_grad()
    def _outputs(self, passes: Iterable[tuple[np.ndarray, Batch, Tensor]]) -> np.ndarray:
        """`[n, outputs]` from (numbers of the examples, batch, its final hidden states)."""
        read = self.readout.outputs
        found = [read([self.examples[i] for i in rows], batch, final) for rows, batch, final in passes]
        return torch.cat(found).double().cpu().numpy()

    def draws(self, predicted: np.ndarray) -> np.ndarray:
        """The metric `[1 + n_draws]`; a prediction that is not finite makes it NaN."""
        if not np.isfinite(predicted).all():
            return np.full(len(self.weights), np.nan)
        return self.readout.score(predicted, self.y, self.weights)

    def subject(self, tokens: int = BATCH_TOKENS) -> np.ndarray:
        def plain(batch: Batch) -> Tensor:
            with fast_kernels(self.readout.subject):
                return self.readout.subject.hidden(batch.ids, batch.mask)

        return self.draws(self.memo(f"subject {self.name} {tokens}", lambda: self.predictions(plain, tokens)))

    def noise(self, subject: np.ndarray) -> float:
        """By how much rounding alone moves the metric: what other batches make of the subject's, in any draw, and
        what float64 sums over the examples leave."""
        moved = np.abs(self.subject(BATCH_TOKENS // 3) - subject)
        rounding = np.finfo(np.float64).eps * len(self.y) * max(1.0, float(np.nanmax(np.abs(subject))))
        return max(float(np.nanmax(moved)), rounding)

    def circuit(self, basis: Basis, keep: Keep, statistics: Statistics, way: Way) -> np.ndarray:
        """The metric `[1 + n_draws]` of the circuit alone (free-running or teacher-forced), or of the subject without
        it (removed)."""

        def predictions() -> np.ndarray:
            made = self._made.passes(basis, statistics)
            return self._outputs((rows, passes.batch, passes.final(keep, way)) for rows, passes in made)

        key = repr((basis.name, self.name, way, [kept.tolist() for kept in keep]))
        return self.draws(self.memo(key, predictions))

    @cached_property
    def _made(self) -> Made:
        return Made(batches(self.examples, BATCH_TOKENS, self.readout.subject))


@dataclass(frozen=True, eq=False)
class Anchors:
    """What shares are relative to: the subject and ∅, each `[1 + n_draws]`, and chance. `noise`: `Judge.noise`."""

    subject: np.ndarray
    empty: np.ndarray
    chance: float
    noise: float

    def kept(self, value: np.ndarray) -> np.ndarray:
        return share(value - self.chance, self.subject - self.chance, self.noise)

    def faithful(self, value: np.ndarray) -> np.ndarray:
        return share(value - self.empty, self.subject - self.empty, 2 * self.noise)

    def fall(self, value: np.ndarray) -> np.ndarray:
        return share(self.subject - value, self.subject - self.chance, self.noise)

    def summary(self, value: np.ndarray) -> dict[str, Any]:
        kept, faithful = self.kept(value), self.faithful(value)
        return {
            "value": value[0],
            "sufficiency": kept[0],
            "ci": interval(kept[1:]),
            "faithfulness": faithful[0],
            "faithfulness_ci": interval(faithful[1:]),
        }


def pooled(shares: Sequence[np.ndarray], seed: int) -> dict[str, Any]:
    """Mean share of several circuits `[circuits][1 + n_draws]`; the interval draws circuits and groups."""
    table = np.stack(shares)
    rng = np.random.default_rng((seed, 5))
    chosen = rng.integers(0, len(table), (table.shape[1] - 1, len(table)))
    means = table[chosen, np.arange(1, table.shape[1])[:, None]].mean(1)
    return {"mean": table[:, 0].mean(), "ci": interval(means), "sd": table[:, 0].std(ddof=1), "n": len(table)}


def matched(keep: Keep, statistics: Statistics, rng: np.random.Generator) -> Keep:
    """A random circuit with as many parts in every layer, none of them in `keep` where the layer has enough others,
    each among those closest in log density to the part it stands for."""
    found = []
    for layer, kept in enumerate(keep):
        logs = log_frequency(statistics.density[layer].numpy())
        pool = logs.copy()
        if 2 * len(kept) <= len(logs):
            pool[kept.numpy()] = np.inf
        _, drawn = matched_draws([0] * len(kept), logs[kept.numpy()], [pool], rng)
        found.append(torch.from_numpy(np.sort(drawn)))
    return tuple(found)


def sizes_on_grid(n_parts: int, wanted: Sequence[int] | None) -> list[int]:
    """Sizes from one part to all: 1, 2 and 5 per decade of the share of all parts, or those wanted."""
    if wanted is not None:
        return sorted(set(wanted))
    shares = [s * 10.0**-d for d in (4, 3, 2, 1) for s in (1, 2, 5)] + [1.0]
    return sorted({max(1, round(share * n_parts)) for share in shares})


def top(basis: Basis, scores: Tensor, n: int) -> Keep:
    """The `n` parts of highest score."""
    return basis.split(scores.argsort(descending=True, stable=True)[:n].sort().values)


@dataclass(frozen=True, eq=False)
class Ranked:
    """A basis with its ranking: `scores [parts]`, layers one after the other."""

    basis: Basis
    statistics: Statistics
    scores: Tensor
    anchors: Anchors

    def best(self, judge: Judge, n: int, way: Way) -> np.ndarray:
        """The metric `[1 + n_draws]` of the first `n` parts, of all where there are fewer."""
        return judge.circuit(self.basis, top(self.basis, self.scores, n), self.statistics, way)


@dataclass(frozen=True, eq=False)
class Proof:
    """Measures the first parts of a ranking beside random circuits and the first neurons."""

    judge: Judge
    features: Ranked
    neurons: Ranked
    n_controls: int
    seed: int

    def entry(self, n: int) -> dict[str, Any]:
        """One size: the circuit in both modes, random circuits, and the neuron basis at equal size."""
        own, free = self.features, self.features.best(self.judge, n, "free_running")
        return {
            "n": n,
            "fraction": n / own.basis.n,
            "free_running": own.anchors.summary(free),
            "teacher_forced": own.anchors.summary(own.best(self.judge, n, "teacher_forced")),
            "random": self._random(n, "free_running"),
            "neurons": self._neurons_beside(free, n),
        }

    def _neurons_beside(self, circuit: np.ndarray, n: int) -> dict[str, Any]:
        """The first `n` neurons, and how much more than they the circuit keeps, drawn together."""
        other = self.neurons.best(self.judge, n, "free_running")
        difference = self.features.anchors.kept(circuit) - self.neurons.anchors.kept(other)
        size = min(n, self.neurons.basis.n)
        return {"n": size, "fraction": size / self.neurons.basis.n, **self.neurons.anchors.summary(other),
                "difference": difference[0], "difference_ci": interval(difference[1:])}  # fmt: skip

    def chosen(
        self, level: str, choice: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any] | None:
        """The entry of the size chosen for `level`; `neurons_chosen` are those that the same rule chooses."""
        n, other = choice["features"][level], choice["neurons"][level]
        if n is None:
            return None
        free = self.features.best(self.judge, n, "free_running")
        beside = None if other is None else self._neurons_beside(free, other)
        return {**next(entry for entry in entries if entry["n"] == n), "neurons_chosen": beside}

    def necessity(self, n: int) -> dict[str, Any]:
        found = []
        for ranked in (self.features, self.neurons):
            gone = ranked.best(self.judge, n, "removed")
            fall = ranked.anchors.fall(gone)
            found.append({"n": min(n, ranked.basis.n), "value": gone[0], "fall": fall[0], "ci": interval(fall[1:])})
        return found[0] | {"random": self._random(n, "removed"), "neurons": found[1]}

    def unsigned(self, n: int) -> dict[str, Any]:
        """The same size ranked by |score|: parts that work against the task are then in the circuit too."""
        by_size = replace(self.features, scores=self.features.scores.abs())
        return {"n": n} | by_size.anchors.summary(by_size.best(self.judge, n, "free_running"))

    def drawn(self, n: int) -> list[Keep]:
        """The random circuits beside the first `n` parts."""
        own, rng = self.features, np.random.default_rng((self.seed, 6))
        keep = top(own.basis, own.scores, n)
        return [matched(keep, own.statistics, rng) for _ in range(self.n_controls)]

    def _random(self, n: int, way: Way) -> dict[str, Any]:
        """Matched random circuits: mean share kept (or, for `removed`, fall), interval, spread."""
        own = self.features
        relative = own.anchors.fall if way == "removed" else own.anchors.kept
        drawn = self.drawn(n)
        shares = [relative(self.judge.circuit(own.basis, keep, own.statistics, way)) for keep in drawn]
        return pooled(shares, self.seed)


def per_layer(keep: Keep, basis: Basis, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Parts of the circuit per layer (`numbers`: the subject's), how many a random choice would put there, and the
    central 95 % `interval` of that (hypergeometric)."""
    n, rows = sum(len(kept) for kept in keep), []
    for layer, kept, size in zip(numbers, keep, basis.sizes, strict=True):
        ends = [float(end) for end in scipy.stats.hypergeom(basis.n, size, n).interval(0.95)]
        rows.append({"layer": layer, "n": len(kept), "expected": n * size / basis.n, "interval": ends})
    return rows
