"""Can an edit be noticed: how well simple detectors tell edited runs from plain ones, by place and strength, beside
random twins. How far off the data an edit lies is read beside what it wins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from isotrace.base.errors import InputError
from isotrace.interventions import Plan
from isotrace.stats.metrics import auroc
from isotrace.steering.edits import Edits
from isotrace.steering.questions import Questions
from isotrace.subjects.probe import pool
from isotrace.subjects.subject import Batch, Subject

FALSE_ALARMS = 0.05
DETECTORS = ("entropy", "likelihood", "distance", "read-out")
RIDGE = 0.1


@dataclass(frozen=True, eq=False)
class Seen:
    """What detectors see of sequences: mean `entropy [n]` of the predictions, mean log-`likelihood [n]` of the tokens,
    both in nats (each token masked alone, or from those before it), and the pooled final `state [n, d_model]`."""

    entropy: np.ndarray
    likelihood: np.ndarray
    state: np.ndarray


States = Literal["whole", "asked"]


@torch.no_grad()
def seen(subject: Subject, batches: Sequence[Batch], plan: Plan, states: States = "whole") -> Seen:
    """`states`: pooled over the `whole` sequence as it stands, or over the tokens `asked` about, each as it predicts:
    of a masked subject hidden, which is where an edit of masked tokens acts. Raises as `Questions.of`."""
    asked = Questions.of(subject, batches)
    rows, n = torch.cat(asked.rows).cpu(), sum(len(batch.ids) for batch in batches)
    parts = [
        (-(p.exp() * p).sum(-1), p.gather(-1, truth[:, None])[:, 0], final)
        for (final, p), truth in zip(asked.read(plan), asked.truth, strict=True)
    ]
    entropy, likelihood, finals = (_means(torch.cat(x).double().cpu(), rows, n) for x in zip(*parts, strict=True))
    if states == "whole":
        pooled = [pool(subject, batch, subject.run(batch, plan=plan, logits=False).final) for batch in batches]
        finals = torch.cat(pooled).double().cpu().numpy()
    return Seen(entropy, likelihood, finals)


def _means(x: torch.Tensor, rows: torch.Tensor, n: int) -> np.ndarray:
    """`[n, …]` of `x [tokens, …]`, by row."""
    counts = torch.zeros(n).double().index_add(0, rows, torch.ones(len(rows)).double())
    sums = x.new_zeros(n, *x.shape[1:]).index_add(0, rows, x)
    return (sums / counts.view(-1, *[1] * (x.dim() - 1))).numpy()


@dataclass(frozen=True)
class Detection:
    """Of one detector on sequences that fitted nothing: `auroc` of edited against plain runs, the share of edited ones
    found (`hits`) above the threshold that a twentieth of the plain ones it was fitted on pass, and the share of plain
    ones that pass it here (`false_alarms`): more than a twentieth where it was fitted on few. `power`: the share of
    edited ones above what a twentieth of the plain ones here pass."""

    name: str
    detector: str
    auroc: float
    hits: float
    false_alarms: float
    power: float


def detections(fitted: Mapping[str, tuple[Seen, Seen]], plain: tuple[Seen, Seen]) -> list[Detection]:
    """Of every edited run `name → (seen to fit on, seen to judge on)` by every detector: entropy and likelihood as
    distances, either way, from the median of plain runs; the Mahalanobis distance of the state from plain runs; a
    linear read-out fitted on plain and edited runs. Raises InputError for fewer than 20 plain runs."""
    if len(plain[0].entropy) < 1 / FALSE_ALARMS:
        raise InputError(f"{len(plain[0].entropy)} sequences set no threshold of one in twenty: give 20 or more.")
    found = []
    for name, (fit, held) in fitted.items():
        scores = {key: _off(plain, held, key) for key in ("entropy", "likelihood")}
        scores["distance"] = _distance(plain, held)
        scores["read-out"] = _linear(plain, fit, held)
        for detector in DETECTORS:
            own, clean, edited = scores[detector]
            threshold, here = (np.quantile(x, 1 - FALSE_ALARMS, method="higher") for x in (own, clean))
            y = np.repeat([0.0, 1.0], [len(clean), len(edited)])
            area = float(auroc(np.concatenate([clean, edited])[:, None], y, np.ones((1, len(y))))[0])
            hits, alarms = float((edited > threshold).mean()), float((clean > threshold).mean())
            found.append(Detection(name, detector, area, hits, alarms, float((edited > here).mean())))
    return found


Scores = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of the plain runs fitted on, of the plain runs judged, of the edited runs judged."""


def _off(plain: tuple[Seen, Seen], edited: Seen, key: str) -> Scores:
    middle = np.median(getattr(plain[0], key))
    own, clean, new = (np.abs(getattr(one, key) - middle) for one in (*plain, edited))
    return own, clean, new


def _whitening(states: np.ndarray) -> np.ndarray:
    """Inverse of the covariance, shrunk towards a multiple of the identity by RIDGE of the mean variance."""
    covariance = np.atleast_2d(np.cov(states.T))
    return np.linalg.inv(
        covariance + RIDGE * max(np.trace(covariance), 1e-30) / len(covariance) * np.eye(len(covariance))
    )


def _distance(plain: tuple[Seen, Seen], edited: Seen) -> Scores:
    mean, inverse = plain[0].state.mean(0), _whitening(plain[0].state)
    own, clean, new = (
        np.einsum("nd,de,ne->n", one.state - mean, inverse, one.state - mean) for one in (*plain, edited)
    )
    return own, clean, new


def _linear(plain: tuple[Seen, Seen], fit: Seen, edited: Seen) -> Scores:
    inverse = _whitening(np.concatenate([one.state - one.state.mean(0) for one in (plain[0], fit)]))
    weight = inverse @ (fit.state.mean(0) - plain[0].state.mean(0))
    own, clean, new = (one.state @ weight for one in (*plain, edited))
    return own, clean, new


@dataclass(frozen=True)
class Identification:
    """Share of edited runs whose direction is told, out of `n` and nothing, and what guessing gives."""

    accuracy: float
    chance: float


def identification(fitted: Mapping[str, tuple[Seen, Seen]], plain: tuple[Seen, Seen]) -> Identification:
    """Which of several edits, or none, was on: linear discriminants of the pooled state, judged on sequences that
    fitted nothing. Raises InputError for a single edit."""
    if len(fitted) < 2:
        raise InputError("one edit is told from none by detection: give two or more to identify.")
    classes = [plain, *fitted.values()]
    means = np.stack([fit.state.mean(0) for fit, _ in classes])
    inverse = _whitening(np.concatenate([fit.state - fit.state.mean(0) for fit, _ in classes]))
    hits = []
    for number, (_, held) in enumerate(classes):
        scores = held.state @ inverse @ means.T - 0.5 * np.einsum("kd,de,ke->k", means, inverse, means)
        hits.append((scores.argmax(1) == number).mean())
    return Identification(float(np.mean(hits)), 1 / len(classes))


@dataclass(frozen=True)
class Noticed:
    """`own`: of one edit, of `layer` of its components, at strength `alpha`; `twins`: of random twins of it."""

    layer: int
    alpha: float
    own: Detection
    twins: tuple[Detection, ...]


def detectability(
    subject: Subject, edits: Edits, fit: Sequence[Batch], held: Sequence[Batch], alphas: Sequence[float],
    n_twins: int = 5, seed: int = 0,
) -> list[Noticed]:  # fmt: skip
    """Every edit of `edits` alone, at every strength, by every detector. `fit` and `held` share no sequence. Raises as
    `detections`."""
    plain, found = tuple(seen(subject, batches, Plan()) for batches in (fit, held)), []
    for number, edit in enumerate(edits.edits):
        alone = replace(edits, edits=(edit,))
        rows = [alone, *(alone.twin(seed + number * n_twins + i) for i in range(n_twins))]
        for alpha in alphas:
            runs = {
                f"layer {edit.layer}, α = {alpha:.3g}, {i}": (
                    seen(subject, fit, one.plan(alpha)), seen(subject, held, one.plan(alpha))
                )
                for i, one in enumerate(rows)
            }  # fmt: skip
            each = detections(runs, (plain[0], plain[1]))
            for at in range(len(DETECTORS)):
                own, *twins = each[at :: len(DETECTORS)]
                found.append(Noticed(edit.layer, alpha, own, tuple(twins)))
    return found
