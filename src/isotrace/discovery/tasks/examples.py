"""Report sequences of a task to show: which, what subject and circuit say of them, and what speaks for it where."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from isotrace.base.progress import Progress
from isotrace.datasets.tasks import Example, TaskData, batches
from isotrace.discovery.tasks.basis import Basis, Keep, Statistics
from isotrace.discovery.tasks.ranking import BATCH_TOKENS, at_point
from isotrace.discovery.tasks.readout import Readout, class_probabilities, hidden, predictions
from isotrace.discovery.tasks.task_circuit import TaskCircuit
from isotrace.domains.domain import Domain, Reading
from isotrace.interventions.writers import Writers
from isotrace.stats.metrics import auroc
from isotrace.subjects.subject import Batch


@dataclass(frozen=True)
class Drawn:
    """A report sequence to show: its number among the report examples, the subject's margin, and whether it stands
    for what the subject gets right."""

    place: int
    margin: float
    right: bool


def token_contributions(
    basis: Basis,
    statistics: Statistics,
    keep: Keep,
    readout: Readout,
    examples: Sequence[Example],
    coefficients: np.ndarray,
    ranking: str,
    progress: Callable[[Iterable], Iterable] = iter,
) -> list[np.ndarray]:
    """Per example float64 `[tokens]`: Σ over the kept parts of (a − ā) · W · ∂S/∂(what is written) at that token.

    S = Σ coefficients · outputs, `coefficients` `[rows, outputs]` as `Readout.outputs` gives rows. The slope is taken
    where `ranking` takes it (`pruning`: as for attribution patching): with the coefficients of `Readout.coefficients`,
    the sum over all tokens of all discovery sequences is the sum of the scores of the kept parts.
    """
    base = basis.writers.base(basis.subject, statistics.mean)
    writes = [basis.writers.rows(basis.subject, layer, kept) for layer, kept in enumerate(keep)]
    shares, at, found = torch.from_numpy(coefficients).float().to(basis.subject.device), 0, []
    for rows, batch in progress(batches(examples, BATCH_TOKENS, basis.subject)):
        chosen = [examples[i] for i in rows]
        n = sum(np.size(e.y) for e in chosen)
        share, at = shares[at : at + n], at + n

        output = _combined(readout, chosen, batch, share)
        active, slopes = at_point(ranking, basis, batch, base, output, statistics)
        total = torch.zeros(batch.ids.shape, dtype=torch.float64)
        for layer, kept in enumerate(keep):
            slope = torch.cat([slopes[t] for t in basis.writers.targets(layer)], -1)
            change = active[layer][..., kept] - statistics.mean[layer][kept]
            total += ((change @ writes[layer]) * slope).sum(-1).cpu()
        found += [total[i, : len(e.ids)].numpy() for i, e in enumerate(chosen)]
    return found


def _combined(readout: Readout, examples: Sequence[Example], batch: Batch, share: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda final: (readout.outputs(examples, batch, final) * share).sum()


def example_rows(
    found: TaskCircuit, domain: Domain, n_drawn: int, progress: Progress = lambda items, _: items
) -> list[dict[str, Any]]:
    """Plain data of `n_drawn` report sequences: `text` with its `tokens` and `offsets`, as `Domain.read` takes them;
    `index`, `right`, `margin` of `pick`; `label`, and what `subject` and `circuit` alone say, see `label_of` and
    `said`; `weights`, per token the contribution of the circuit's features to the output of `output_drawn`; `marked`,
    per token what carries the label, None where the whole sequence does.

    Empty for circuits that are not made of features or neurons: what a head contributes at a token has no direction of
    its own to multiply a slope with.
    """
    readout, data, basis, statistics = found.readout, found.data, found.features.basis, found.features.statistics
    subject = readout.subject
    if not n_drawn or not isinstance(basis.components, Writers):
        return []
    report = data.parts["report"]
    every = predictions(readout, report, progress, lambda b: hidden(subject, b))
    drawn = pick(data.kind, report, every, n_drawn, found.config.seed)
    examples = [report[d.place] for d in drawn]
    keep = found.keep()
    whole = [every[d.place] for d in drawn]
    alone = predictions(readout, examples, lambda i, _: i, lambda b: basis.kept(b, keep, statistics))
    coefficients = np.concatenate([output_drawn(readout, e, p) for e, p in zip(examples, whole, strict=True)])
    shown = lambda items: progress(items, "contributions per token")  # noqa: E731
    ranking = found.config.ranking
    parts = token_contributions(basis, statistics, keep, readout, examples, coefficients, ranking, shown)
    rows = []
    for choice, example, p, q, weights in zip(drawn, examples, whole, alone, parts, strict=True):
        batch = subject.tokenize([example.text])
        tokens, offsets = subject.tokens(batch.ids[0]), [[*pair] for pair in batch.offsets[0]]
        reading = domain.read(example.text, tokens, batch.offsets[0])
        row = {
            "index": example.index, "text": example.text, "tokens": [*tokens], "offsets": offsets,
            "right": choice.right, "margin": choice.margin, "label": label_of(data, example, reading, readout),
            "subject": said(data, example, p), "circuit": said(data, example, q), "weights": weights.tolist(),
            "marked": None,
        }  # fmt: skip
        if data.kind not in ("class", "regression"):
            marked = np.zeros(len(weights))
            marked[[*example.places]] = example.y if data.kind == "residue" else 1.0
            row["marked"] = marked.tolist()
        rows.append(row)
    return rows


def output_drawn(readout: Readout, example: Example, predicted: np.ndarray) -> np.ndarray:
    """`[rows, outputs]`: the combination of an example's outputs that its drawing explains.

    class with two: the log-odds of the second. More: the logit of the class the subject predicts minus the mean of
    the others. residue: mean log-odds of labelled minus mean of unlabelled tokens (of all, where there are no two
    kinds). masked: logit of the true token minus the mean. regression, mutation: the prediction.
    """
    made = np.zeros_like(predicted)
    if readout.kind == "masked":
        made[:, 1] = 1
    elif readout.kind == "residue":
        y = np.asarray(example.y)
        both = 0 < y.sum() < len(y)
        made[:, 0] = y / y.sum() - (1 - y) / (1 - y).sum() if both else 1 / len(y)
    elif made.shape[1] > 1:
        made[:] = -1 / (made.shape[1] - 1)
        made[0, predicted[0].argmax()] = 1
    else:
        made[:] = 1
    return made


def pick(kind: str, examples: Sequence[Example], predicted: Sequence[np.ndarray], n: int, seed: int) -> list[Drawn]:
    """`n` examples, half of them right with a high margin and half wrong, each half drawn at random.

    class, masked: right where the largest output is the label's, then those whose margin over the next is above the
    median; wrong are all others. regression, mutation: the quarters of smallest and largest difference between the
    rank of the prediction and that of the label. residue: those of largest and smallest AUROC inside the sequence,
    where it has both labels. Where one half lacks examples the other fills up.
    """
    margins, hit = _margins(kind, examples, predicted)
    known = np.flatnonzero(np.isfinite(margins))
    if hit is None:
        order = known[np.argsort(-margins[known], kind="stable")]
        right, wrong = order[: -(-len(order) // 4)], order[len(order) - len(order) // 4 :]
    else:
        right, wrong = known[hit[known]], known[~hit[known]]
        right = right[margins[right] >= np.median(margins[right])] if len(right) else right
    rng = np.random.default_rng((seed, 7))
    right, wrong = rng.permutation(right), rng.permutation(wrong)
    n_wrong = min(len(wrong), max(n // 2, n - len(right)))
    chosen = [*((i, True) for i in right[: n - n_wrong]), *((i, False) for i in wrong[:n_wrong])]
    return [Drawn(int(i), float(margins[i]), ok) for i, ok in chosen]


def _margins(
    kind: str, examples: Sequence[Example], predicted: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray | None]:
    """(margin of each example, NaN where it has none; whether it is right, None where nothing is plainly so)."""
    if kind == "residue":
        one = lambda e, p: auroc(p, np.asarray(e.y), np.ones((1, len(e.y))))[0]  # noqa: E731
        return np.asarray([one(e, p) for e, p in zip(examples, predicted, strict=True)]), None
    y, outputs = np.asarray([e.y for e in examples]), np.concatenate(predicted)
    if kind in ("regression", "mutation"):
        return -np.abs(scipy.stats.rankdata(outputs[:, 0]) - scipy.stats.rankdata(y)) / len(y), None
    if kind == "masked":
        return outputs[:, 1], outputs[:, 0] > 0
    if outputs.shape[1] == 1:
        margins = outputs[:, 0] * np.where(y > 0, 1, -1)
        return margins, margins > 0
    own = np.arange(outputs.shape[1]) == y[:, None]
    margins = outputs[own] - np.where(own, -np.inf, outputs).max(1)
    return margins, margins > 0


def label_of(data: TaskData, example: Example, reading: Reading, readout: Readout) -> dict[str, Any]:
    """The label: `class`, or `value`, or `labelled` of `total` places, or the `token` that is masked; `places` that are
    masked or mutated, elements counted from 1; `mutations` by name."""
    if data.kind == "class":
        return {"class": data.classes[int(example.y)]}
    if data.kind == "residue":
        return {"labelled": int(np.sum(example.y)), "total": len(example.places)}
    places = [reading.elements[place][0] + 1 for place in example.places]
    if data.kind == "masked":
        return {"token": readout.subject.tokens(torch.tensor([int(example.y)]))[0], "places": places}
    found: dict[str, Any] = {"value": float(example.y), "places": places}
    if example.swaps:
        ends = [readout.subject.tokens(torch.tensor([before, after])) for _, before, after in example.swaps]
        found["mutations"] = [f"{before}{at}{after}" for at, (before, after) in zip(places, ends, strict=True)]
    return found


def said(data: TaskData, example: Example, predicted: np.ndarray) -> dict[str, Any]:
    """What the readout makes of the outputs `[rows, outputs]` of one example: `class` and its `probability`; `auroc`
    inside the sequence (NaN with one kind of label only); whether the true token is first (`hit`), and its logit less
    the mean (`contrast`); `value`."""
    if data.kind == "class":
        shares = class_probabilities(predicted)
        best = int(shares.argmax())
        return {"class": data.classes[best], "probability": float(shares[best])}
    if data.kind == "residue":
        return {"auroc": float(auroc(predicted, np.asarray(example.y), np.ones((1, len(predicted))))[0])}
    if data.kind == "masked":
        return {"hit": bool(predicted[0, 0]), "contrast": float(predicted[0, 1])}
    return {"value": float(predicted[0, 0])}
