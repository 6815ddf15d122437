"""The size of a circuit, chosen on the discovery part alone, so that the report part can say what it is worth.

1. halve      the groups of the discovery part, about as many sequences to either side, in HALVINGS ways
2. rank       all parts on one half, and on the other
3. sweep      the first n of each ranking alone, free-running, on the half that the ranking has not seen
4. choose     the first size from which on every larger one keeps 79 % (90 %) of the metric above chance there

Kept share: Σ over all halves of M(circuit) − chance, over Σ M(subject) − chance. Several halvings, since with one the
size is a matter of luck. Means of what is removed are those of the whole discovery part; they know no labels.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from isotrace.base.work import Memo
from isotrace.datasets.tasks import Example, TaskData
from isotrace.discovery.tasks.readout import Readout
from isotrace.discovery.tasks.sweep import Judge, Ranked
from isotrace.stats.share import share
from isotrace.stats.splits import deal

LEVELS = (79, 90)
HALVINGS = 5
TRIES = 20  # ways to halve that are tried, since either half must have two labels


@dataclass(frozen=True, eq=False)
class Half:
    """`data`: the task with one half of the discovery part to discover on; `judge` judges on the other, where the
    subject is `span` above chance, give or take `noise`."""

    data: TaskData
    judge: Judge
    span: float
    noise: float


def halves(readout: Readout, data: TaskData, seed: int, memo: Memo) -> list[Half]:
    """Both of every halving; fewer than HALVINGS where few ways differ and leave two labels on either side, none where
    the discovery part has one group."""
    examples = data.parts["discover"]
    groups = [e.group for e in examples]
    ways: set[bytes] = set()
    found: list[Half] = []
    for attempt in range(TRIES if len({*groups}) > 1 else 0):
        dealt = deal(groups, (0.5, 0.5), seed + attempt)
        way = (dealt ^ dealt[0]).tobytes()  # which side is called the first makes no other way
        sides = [tuple(e for e, at in zip(examples, dealt, strict=True) if at == side) for side in (0, 1)]
        usable = all(data.kind == "masked" or len(np.unique(readout.labels(side)[0])) > 1 for side in sides)
        if usable and way not in ways:
            ways.add(way)
            for i, (ranked, judged) in enumerate((sides, sides[::-1])):
                found.append(_half(readout, data, f"half {attempt}.{i}", ranked, judged, memo))
        if len(ways) == HALVINGS:
            break
    return found


def _half(
    readout: Readout, data: TaskData, name: str, ranked: tuple[Example, ...], judged: tuple[Example, ...], memo: Memo
) -> Half:
    judge = Judge.of(readout, name, judged, 0, 0, memo)
    subject = judge.subject()
    parts = data.parts | {"discover": ranked}
    return Half(replace(data, parts=parts), judge, float(subject[0] - judge.chance), judge.noise(subject))


def kept_there(found: Sequence[Half], values: Sequence[float]) -> float:
    """Share kept over all halves, `values` the metric on each; NaN where the subject is not above chance."""
    above = sum(value - half.judge.chance for half, value in zip(found, values, strict=True))
    return share(above, max(sum(half.span for half in found), 0.0), sum(half.noise for half in found))


def on_halves(n: int, found: Sequence[Half], ranked: Ranked, scores: Sequence[Tensor]) -> list[float]:
    """The metric of the first `n` parts on every half, by `scores` on each."""
    halved = [replace(ranked, scores=own) for own in scores]
    return [float(of.best(half.judge, n, "free_running")[0]) for half, of in zip(found, halved, strict=True)]


def first_from(sizes: Sequence[int], shares: Sequence[float], level: int) -> int | None:
    """The first of the rising `sizes` from which on every larger one keeps `level` % too; None where none does."""
    found = None
    for n, kept in zip(reversed(sizes), reversed(shares), strict=True):
        if not kept >= level / 100:
            break
        found = n
    return found


def chosen(sizes: Sequence[int], shares: Sequence[float]) -> dict[str, int | None]:
    """Level → size, see `first_from`."""
    return {str(level): first_from(sizes, shares, level) for level in LEVELS}


def choose(
    sizes: Sequence[int],
    found: Sequence[Half],
    rankings: Mapping[str, tuple[Ranked, Sequence[Tensor]]],
    progress: Callable[[Iterable, str], Iterable],
) -> dict[str, Any]:
    """`sweep`: per size what the first parts of every ranking keep on the discovery part, `n_groups` of every half,
    and by the name of the ranking the sizes chosen, as `chosen` has them; all None where nothing could be halved.

    rankings: name → (the ranking on the whole discovery part, scores on every half).
    """
    sweep: list[dict[str, Any]] = []
    for n in progress(sizes if found else (), "choosing the size"):
        row: dict[str, Any] = {"n": n}
        for name, (ranked, scores) in rankings.items():
            row[name] = kept_there(found, on_halves(n, found, ranked, scores))
        sweep.append(row)
    sizes_of = {name: [min(row["n"], ranked.basis.n) for row in sweep] for name, (ranked, _) in rankings.items()}
    return {
        "n_groups": [len({e.group for e in half.judge.examples}) for half in found],
        "sweep": sweep,
        **{name: chosen(sizes_of[name], [row[name] for row in sweep]) for name in rankings},
    }
