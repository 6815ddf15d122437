"""Circuits of rising size on the report sequences: what they keep of the task metric, beside their controls.

    kept share    (M(circuit) − chance) / (M(subject) − chance), the `sufficiency` of a circuit
    faithfulness  (M(circuit) − M(∅)) / (M(subject) − M(∅)), ∅ = every part at its mean
    fall          (M(subject) − M(subject without the circuit)) / (M(subject) − chance), the `necessity`

Intervals are 95 % percentile bootstrap intervals over groups; subject, circuit and ∅ are drawn together. Random
circuits take from each layer as many parts as the circuit has there, each among those closest in how often they are
active; their interval draws circuits as well as groups. Nothing is clipped.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from isotrace.base.work import Memo
from isotrace.datasets.tasks import TaskData
from isotrace.discovery.tasks.basis import Basis, Keep, Statistics
from isotrace.discovery.tasks.readout import BATCH_TOKENS, Readout
from isotrace.stats.bootstrap import group_weights, interval
from isotrace.subjects.fast import fast_kernels

Way = Literal["free_running", "teacher_forced", "removed"]
NEIGHBOURS = 10
CACHE = 1  # raised when a circuit, or what it is made of, is computed differently


@dataclass(frozen=True, eq=False)
class Judge:
    """The report part of a task. `weights [1 + n_draws, n]`: the examples as they are, then bootstrap draws."""

    readout: Readout
    data: TaskData
    part: str
    y: np.ndarray
    weights: np.ndarray
    memo: Memo

    @classmethod
    def of(cls, readout: Readout, data: TaskData, part: str, n_draws: int, seed: int, memo: Memo) -> "Judge":
        y, groups = readout.labels(data.parts[part])
        return cls(readout, data, part, y, group_weights(groups, n_draws, (seed, 3)), memo)

    @torch.no_grad()
    def predictions(self, run: Callable[[Any], Tensor]) -> np.ndarray:
        """`[n, outputs]` from `run(batch)`, which gives final hidden states."""
        examples = self.data.parts[self.part]
        found = []
        for rows, batch in self.data.batches(self.part, BATCH_TOKENS, self.readout.subject.pad_id):
            found.append(self.readout.outputs([examples[i] for i in rows], batch, run(batch)))
        return torch.cat(found).double().numpy()

    def draws(self, predicted: np.ndarray) -> np.ndarray:
        """The metric `[1 + n_draws]`; a prediction that is not finite makes it NaN."""
        if not np.isfinite(predicted).all():
            return np.full(len(self.weights), np.nan)
        return self.readout.score(predicted, self.y, self.weights)

    def subject(self) -> np.ndarray:
        def plain(batch) -> Tensor:
            with fast_kernels(self.readout.subject):
                return self.readout.subject.hidden(batch.ids, batch.mask)

        return self.draws(self.memo(f"subject {self.part}", lambda: self.predictions(plain)))

    def circuit(self, basis: Basis, keep: Keep, statistics: Statistics, way: Way) -> np.ndarray:
        """The metric `[1 + n_draws]` of the circuit alone (free-running or teacher-forced), or of the subject without
        it (removed)."""

        def run(batch) -> Tensor:
            if way == "removed":
                return basis.removed(batch, keep, statistics)
            return basis.kept(batch, keep, statistics, basis.clean(batch) if way == "teacher_forced" else None)

        key = repr((basis.name, self.part, way, [kept.tolist() for kept in keep]))
        return self.draws(self.memo(key, lambda: self.predictions(run)))


@dataclass(frozen=True, eq=False)
class Anchors:
    """What shares are relative to, each `[1 + n_draws]`: the subject, ∅, and chance."""

    subject: np.ndarray
    empty: np.ndarray
    chance: float

    def kept(self, value: np.ndarray) -> np.ndarray:
        return _share(value - self.chance, self.subject - self.chance)

    def faithful(self, value: np.ndarray) -> np.ndarray:
        return _share(value - self.empty, self.subject - self.empty)

    def fall(self, value: np.ndarray) -> np.ndarray:
        return _share(self.subject - value, self.subject - self.chance)

    def summary(self, value: np.ndarray) -> dict[str, Any]:
        kept, faithful = self.kept(value), self.faithful(value)
        return {
            "value": value[0],
            "sufficiency": kept[0],
            "ci": interval(kept[1:]),
            "faithfulness": faithful[0],
            "faithfulness_ci": interval(faithful[1:]),
        }


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """NaN where there is nothing to share."""
    return part / np.where(whole == 0, np.nan, whole)


def pooled(shares: Sequence[np.ndarray], seed: int) -> dict[str, Any]:
    """Mean share of several circuits `[circuits][1 + n_draws]`; the interval draws circuits and groups."""
    table = np.stack(shares)
    rng = np.random.default_rng((seed, 5))
    chosen = rng.integers(0, len(table), (table.shape[1] - 1, len(table)))
    means = table[chosen, np.arange(1, table.shape[1])[:, None]].mean(1)
    return {"mean": table[:, 0].mean(), "ci": interval(means), "sd": table[:, 0].std(ddof=1), "n": len(table)}


def matched(keep: Keep, statistics: Statistics, rng: np.random.Generator) -> Keep:
    """A random circuit with as many parts in every layer, none of them in `keep` where the layer has enough others,
    each among the NEIGHBOURS closest to the part it stands for in log density."""
    found = []
    for layer, kept in enumerate(keep):
        logs = (statistics.density[layer].double() + 1e-9).log().numpy()
        free = np.ones(len(logs), dtype=bool)
        if 2 * len(kept) <= len(logs):
            free[kept.numpy()] = False
        drawn = []
        for part in rng.permutation(kept.numpy()):
            distance = np.where(free, np.abs(logs - logs[part]), np.inf)
            n = min(NEIGHBOURS, int(free.sum()))
            drawn.append(int(rng.choice(np.argpartition(distance, n - 1)[:n])))
            free[drawn[-1]] = False
        found.append(torch.tensor(sorted(drawn), dtype=torch.long))
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


def controls(
    judge: Judge, basis: Basis, keep: Keep, statistics: Statistics, anchors: Anchors, n: int, seed: int, way: Way,
    progress: Callable[[Iterable], Iterable] = iter,
) -> dict[str, Any]:  # fmt: skip
    """`n` matched random circuits: mean share kept (or, for `removed`, fall), interval, spread."""
    rng = np.random.default_rng((seed, 6))
    share = anchors.fall if way == "removed" else anchors.kept
    shares = []
    for _ in progress(range(n)):
        shares.append(share(judge.circuit(basis, matched(keep, statistics, rng), statistics, way)))
    return pooled(shares, seed)


def per_layer(keep: Keep, basis: Basis) -> list[dict[str, Any]]:
    """Parts of the circuit per layer, and how many a random choice would put there."""
    n = sum(len(kept) for kept in keep)
    return [
        {"layer": layer, "n": len(kept), "expected": n * size / basis.n}
        for layer, (kept, size) in enumerate(zip(keep, basis.sizes, strict=True))
    ]
