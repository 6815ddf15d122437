"""Detectors of concepts: which features stand for one, and from which activation on it is there.

The features of a concept are those with the largest difference between their mean over tokens that carry it and over
all others. A token's score is the sum of its K = 2 strongest of them, weighed 1 − log(i + 1) / log(K + 1), i from 0; a
sequence's that of its strongest token. The cut with the best balanced accuracy is found on one part of the groups, for
tokens and for sequences, and kept as it is on the other. Of several layers the one that tells sequences best on the
first part is taken.

A concept may have fewer features than asked for, and a token fewer active ones than K: nothing stands in for those.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.datasets.tasks import Example
from isotrace.stats.metrics import balanced_accuracy
from isotrace.steering.directions.concepts.labels import Carried
from isotrace.steering.directions.direction import Fitting
from isotrace.steering.states import by_position

STRONGEST = 2
Told = dict[tuple[int, str], tuple[int, ...]]
"""(layer, concept) → its features, the most telling first."""


@dataclass(frozen=True)
class Cut:
    """Yes from `threshold` on. Balanced accuracy where it was `fitted`, and where it was `held` fixed."""

    threshold: float
    fitted: float
    held: float


@dataclass(frozen=True)
class Detector:
    """`units`: features of `layer`, the most telling first."""

    name: str
    layer: int
    units: tuple[int, ...]
    token: Cut
    sequence: Cut


@dataclass(frozen=True)
class Scores:
    """`tokens [n]` of all tokens, `owner [n]` the sequence of each, `truth [n]`."""

    tokens: np.ndarray
    owner: np.ndarray
    truth: np.ndarray

    def by_sequence(self) -> "Scores":
        rows, inverse = np.unique(self.owner, return_inverse=True)
        best, truth = np.full(len(rows), -np.inf), np.zeros(len(rows), dtype=bool)
        np.maximum.at(best, inverse, self.tokens)
        np.logical_or.at(truth, inverse, self.truth)
        return Scores(best, rows, truth)


def scored(x: Tensor) -> Tensor:
    """`[...]` of the activations `[..., units]` of a concept's features."""
    weights = [1 - math.log(i + 1) / math.log(STRONGEST + 1) for i in range(STRONGEST)]
    top = x.clamp(min=0).topk(min(STRONGEST, x.shape[-1]), dim=-1).values
    return top @ torch.tensor(weights[: top.shape[-1]], dtype=x.dtype, device=x.device)


def best_cut(scores: np.ndarray, truth: np.ndarray) -> float:
    """The threshold of best balanced accuracy, midway between two neighbouring scores; where all are alike, inf. Raises
    InputError where `truth` is the same for all."""
    if truth.all() or not truth.any():
        raise InputError("it holds of all or of none there: give more sequences of either.")
    order = np.argsort(-scores, kind="stable")
    steps, right = scores[order], truth[order]
    told = np.cumsum(right) / right.sum() - np.cumsum(~right) / (~right).sum()
    ends = np.flatnonzero(steps[:-1] > steps[1:])
    if not len(ends) or told[ends].max() <= 0:
        return math.inf
    best = ends[told[ends].argmax()]
    return float((steps[best] + steps[best + 1]) / 2)


def right_share(threshold: float, scores: np.ndarray, truth: np.ndarray) -> float:
    """Balanced accuracy. Raises InputError as `best_cut`."""
    if truth.all() or not truth.any():
        raise InputError("it holds of all or of none there: give more sequences of either.")
    said = np.where(scores >= threshold, 1.0, -1.0)
    return float(balanced_accuracy(said[:, None], truth.astype(float), np.ones((1, len(truth))))[0])


def cut(chosen: Scores, held: Scores) -> Cut:
    """Found on `chosen`, kept on `held`."""
    threshold = best_cut(chosen.tokens, chosen.truth)
    return Cut(threshold, *(right_share(threshold, part.tokens, part.truth) for part in (chosen, held)))


def detectors_of(
    fitting: Fitting, carry: Sequence[Carried], names: Sequence[str], parts: tuple[np.ndarray, np.ndarray], k: int = 10
) -> dict[str, Detector]:  # fmt: skip
    """Of each of `names`, from at most `k` features. `carry`: of each sequence of the contrast; `parts`: rows to fit
    and to hold. Raises InputError for a concept that no feature tells, or that holds of all or none in a part."""
    told = telling(fitting, carry, names, parts[0], k)
    examples, found = fitting.contrast.examples, {}
    scores = [_scores(fitting, [examples[i] for i in rows], [carry[i] for i in rows], told) for rows in parts]
    for name in names:
        options = []
        for layer in fitting.layers:
            if (layer, name) not in told:
                continue
            try:
                chosen, held = (part[layer, name] for part in scores)
                cuts = cut(chosen, held), cut(chosen.by_sequence(), held.by_sequence())
            except InputError as error:
                raise InputError(f"{name!r} cannot be detected: {error}") from None
            except KeyError:
                raise InputError(f"{name!r} is not known of any held-out sequence: give more sequences.") from None
            options.append(Detector(name, layer, told[layer, name], *cuts))
        if not options and not any(carry[i][name].any() for i in parts[0] if name in carry[i]):
            raise InputError(
                f"{name!r} holds of no sequence that detectors are fitted on: give more sequences, or, of what is "
                "concluded, another rule ('not' needs what is known to be false)."
            )
        if not options:
            raise InputError(f"no feature is stronger where {name!r} is: give other layers, or more sequences of it.")
        found[name] = max(options, key=lambda one: one.sequence.fitted)
    return found


def telling(
    fitting: Fitting, carry: Sequence[Carried], names: Sequence[str], rows: np.ndarray, k: int
) -> Told:  # fmt: skip
    """At most `k` features of each that are stronger where it is than elsewhere."""
    sums: dict[tuple[int, int], Tensor] = {}
    counts = torch.zeros(2, len(names), dtype=torch.float64)
    examples = [fitting.contrast.examples[i] for i in rows]
    for row, states in by_position(fitting.subject, examples, fitting.components, fitting.layers, fitting.progress):
        masks = _masks(fitting, examples[row], carry[rows[row]], names)
        counts += masks.sum(-1)
        for layer, x in states.items():
            for side, mask in enumerate(masks):
                sums[layer, side] = sums[layer, side] + mask @ x if (layer, side) in sums else mask @ x
    found = {}
    for layer in fitting.layers:
        means = [sums[layer, side] / counts[side, :, None] for side in (0, 1)]
        for name, gap in zip(names, means[0] - means[1], strict=True):  # NaN where it holds of all or none
            top = gap.nan_to_num(nan=-1).topk(min(k, len(gap)))
            if units := tuple(u for u, g in zip(top.indices.tolist(), top.values.tolist(), strict=True) if g > 0):
                found[layer, name] = units
    return found


def seen(fitting: Fitting, detectors: dict[str, Detector], examples: Sequence[Example]) -> list[dict[str, bool]]:
    """Of each example, which concepts its sequence is said to have."""
    found: list[dict[str, bool]] = [{} for _ in examples]
    layers = tuple(sorted({one.layer for one in detectors.values()}))
    for row, states in by_position(fitting.subject, examples, fitting.components, layers):
        real = ~fitting.subject.special(torch.from_numpy(examples[row].ids)).cpu()
        for name, one in detectors.items():
            found[row][name] = float(scored(states[one.layer][real][:, one.units]).max()) >= one.sequence.threshold
    return found


def _masks(fitting: Fitting, example: Example, carry: Carried, names: Sequence[str]) -> Tensor:
    """float64 `[2, names, tokens]`: those that carry it, and all others; neither where it is not known."""
    real = ~fitting.subject.special(torch.from_numpy(example.ids)).cpu()
    none = np.zeros(len(real), dtype=bool)
    with_it = torch.from_numpy(np.stack([carry.get(name, none) for name in names]))
    known = torch.tensor([name in carry for name in names])[:, None]
    return torch.stack([with_it, known & real & ~with_it]).double()


def _scores(
    fitting: Fitting, examples: Sequence[Example], carry: Sequence[Carried], told: Told
) -> dict[tuple[int, str], Scores]:  # fmt: skip
    """Of every detector's features, over the tokens of sequences of which the concept is known."""
    columns: dict[tuple[int, str], list[tuple[np.ndarray, ...]]] = {place: [] for place in told}
    for row, states in by_position(fitting.subject, examples, fitting.components, fitting.layers):
        real = ~fitting.subject.special(torch.from_numpy(examples[row].ids)).cpu()
        for (layer, name), units in told.items():
            if name in carry[row]:
                x = scored(states[layer][real][:, units]).numpy()
                columns[layer, name].append((x, np.full(len(x), row), carry[row][name][real.numpy()]))
    return {
        place: Scores(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        for place, parts in columns.items()
        if parts
    }
