"""Exact grades of labels: what a label predicts on sequences it was not made from, against what is so.

1. auroc       of where the function fires, over tokens without special ones; `within`: among tokens of equal text only
2. spearman    of its activations, over the same tokens
3. sequences   AUROC of which sequences it fires on, which a label that judges whole sequences is graded by as well
4. choice      whether the prediction agrees best (Spearman) with the truth among it and its near misses; ties share
5. abstained   no concept named: right for the cell `none`
6. named       whether the corruption is in the label: where it can be told from the tokens, the prediction is right on
               most of those that it changes and on most of the rest that fire; else a word for it is in the text

Predictions shuffled among sequences of like length are at chance but for `sequences`: long ones have more of all, so
that lengths alone give more than 1/2. A label that abstains scores AUROC 1/2, Spearman 0, choice 1 / candidates, not
named.
"""

from dataclasses import dataclass

import numpy as np

from isotrace.annotation.benchmark.functions import CORRUPTED, Function
from isotrace.annotation.benchmark.ground import Ground
from isotrace.annotation.benchmark.rules import evaluate
from isotrace.base.errors import InputError
from isotrace.stats.metrics import auroc, spearman


@dataclass(frozen=True, eq=False)
class Label:
    """What a labeler says of a function. `rule`: see `rules`. `fires`: float `[sequences]` of the ground that is graded
    on, how surely each fires, NaN where it was not asked. With neither it abstains."""

    text: str
    rule: str | None = None
    fires: np.ndarray | None = None

    @property
    def abstains(self) -> bool:
        return self.rule is None and self.fires is None


@dataclass(frozen=True)
class Grade:
    """NaN where a grade does not apply, `fault` why a rule could not be read (it is graded as an abstention)."""

    auroc: float
    within: float
    spearman: float
    sequences: float
    choice: float
    abstained: float
    named: float
    fault: str | None = None


def grade(
    label: Label, function: Function, ground: Ground, rows: np.ndarray, source: np.ndarray | None = None
) -> Grade:
    """On the sequences `rows` (ascending) of `ground`, whose concepts are those that a rule may name; `label.fires` is
    of these sequences. `source`: int64 `[tokens]`, the token whose prediction each is given, where the prediction is to
    be shuffled."""
    tokens = ground.table.token_rows(rows)
    tokens = tokens[~ground.special[tokens]]
    owner = np.searchsorted(rows, ground.table.sequence_of[tokens])
    truth = function.values[tokens]
    fires = np.bincount(owner, truth > 0, minlength=len(rows)) > 0
    fault = predicted = None
    if label.rule is not None:
        try:
            predicted = evaluate(label.rule, ground)[tokens if source is None else source[tokens]]
        except InputError as error:
            fault = str(error)
    known = label.fires
    if known is None and predicted is not None:
        known = np.zeros(len(rows))
        np.maximum.at(known, owner, predicted)
    nothing = np.zeros(len(tokens)) if known is None else predicted
    known = np.zeros(len(rows)) if known is None else known
    asked = ~np.isnan(known)
    sequences = area(known[asked], fires[asked])
    abstained = float(predicted is None and label.fires is None)
    if nothing is None:  # a judge of whole sequences
        return Grade(np.nan, np.nan, np.nan, sequences, np.nan, abstained, _named(label, None, function, tokens), fault)
    return Grade(
        area(nothing, truth > 0),
        _within(nothing, truth > 0, ground.texts[tokens].astype(str)),
        0.0 if abstained else _spearman(nothing, truth),
        sequences,
        _choice(nothing, function.candidates[:, tokens]),
        abstained,
        0.0 if abstained and function.cell in CORRUPTED else _named(label, nothing, function, tokens),
        fault,
    )


def area(predicted: np.ndarray, on: np.ndarray) -> float:
    """AUROC of `on` bool `[n]` by `predicted [n]`; NaN where all are alike."""
    return float(auroc(predicted[:, None], on.astype(float), np.ones((1, len(on))))[0])


def _spearman(predicted: np.ndarray, truth: np.ndarray) -> float:
    """0 for a prediction that is the same everywhere."""
    found = float(spearman(predicted[:, None], truth.astype(np.float64), np.ones((1, len(truth))))[0])
    return 0.0 if len(truth) and np.ptp(predicted) == 0 and np.ptp(truth) > 0 else found


def _within(predicted: np.ndarray, on: np.ndarray, texts: np.ndarray) -> float:
    """Share of pairs (fires, does not), both of one text, that the prediction puts right, ties one half; NaN where the
    text alone says where the function fires."""
    right = pairs = 0.0
    order = np.argsort(texts, kind="stable")
    for at in np.split(order, np.flatnonzero(texts[order][1:] != texts[order][:-1]) + 1):
        n = float(on[at].sum()) * float((~on[at]).sum())
        if n:
            right, pairs = right + n * area(predicted[at], on[at]), pairs + n
    return right / pairs if pairs else np.nan


def _choice(predicted: np.ndarray, candidates: np.ndarray) -> float:
    """The share of the best candidates that the truth is, which stands first."""
    if len(candidates) == 1:
        return np.nan
    agreement = np.asarray([_spearman(predicted, one) for one in candidates])
    agreement = np.nan_to_num(agreement, nan=-1.0)  # a near miss that is the same everywhere here is not agreed with
    best = agreement >= agreement.max() - 1e-12
    return float(best[0] / best.sum())


def _named(label: Label, predicted: np.ndarray | None, function: Function, tokens: np.ndarray) -> float:
    if function.cell not in CORRUPTED or function.without is None:
        return np.nan
    if function.draft.words:
        return float(any(word in label.text.lower() for word in function.draft.words))
    if predicted is None:
        return float(all(name.lower() in label.text.lower() for name in function.draft.concepts))
    on = function.values[tokens] > 0
    changed = on != function.without[tokens]
    right = (predicted > 0) == on
    parts = right[changed], right[on & ~changed]
    return float(min(part.mean() for part in parts) > 0.5) if all(map(len, parts)) else np.nan


@dataclass(frozen=True)
class Difficulty:
    """`wrong`: share of the tokens on which the concept that is wrong least often is wrong, or no concept at all, where
    that is better. `apart`: 1 − Jaccard of the concept most like the function, which does not depend on how rarely it
    fires. `concept`: that one."""

    wrong: float
    apart: float
    concept: str


def difficulty(function: Function, ground: Ground, rows: np.ndarray) -> Difficulty:
    """Of the concepts of `ground`, on the sequences `rows` without special tokens."""
    tokens = ground.table.token_rows(rows)
    tokens = tokens[~ground.special[tokens]]
    on, matrix = function.values[tokens] > 0, ground.matrix[:, tokens]
    both = matrix @ on.astype(np.float32)
    size = np.asarray(matrix.sum(axis=1)).ravel()
    wrong = size + on.sum() - 2 * both
    alike = both / np.maximum(size + on.sum() - both, 1)
    best = int(alike.argmax())
    least = float(min(wrong.min(), on.sum())) / len(tokens)
    return Difficulty(least, float(1 - alike[best]), ground.table.token_concepts[best].name)
