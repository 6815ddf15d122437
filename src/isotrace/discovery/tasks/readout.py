"""What is read from the subject for a task: a linear probe on its final hidden states, or its own head.

class, regression   pool → standardise → linear, fitted on the part `fit`, strength by cross-validation over groups
residue             the same on single tokens
masked              the head at the masked position: is the true token first?
mutation            the head at the masked positions: Σ logit(after) − logit(before)

Or, for two classes and numbers, a target that stands already: a saved probe, or the head of a fine-tuned subject.
A probe is fitted once, on the subject, and never on a circuit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import multimode
from typing import Any

import numpy as np
import polars as pl
import torch
from scipy.special import expit, softmax
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.progress import Progress
from isotrace.datasets.tasks import PARTS, Example, Kind, TaskData, batches
from isotrace.probing.linear import searched
from isotrace.stats.metrics import METRICS
from isotrace.subjects.fast import fast_kernels
from isotrace.subjects.probe import pool
from isotrace.subjects.subject import Batch, Subject
from isotrace.subjects.targets import Target, check_target, parse_target

STRENGTHS = {"class": (1e-3, 0.01, 0.1, 1.0), "regression": (1.0, 10.0, 100.0, 1e3)}
FITTING_TOKENS = 100_000  # tokens a residue probe is fitted on at most
BATCH_TOKENS = 4_096
CACHE = 1  # raised when a probe is fitted, or what is read from the subject, differently
ALLOWED = {"class": ("auroc", "balanced_accuracy"), "regression": ("spearman", "r2"), "residue": ("auroc",),
           "masked": ("accuracy",), "mutation": ("spearman",)}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Readout:
    """`weight [d_model, outputs]`, `bias [outputs]` of a probe, None where the head is read. `metric` is the name of
    one of METRICS. `commonest`: of masked tasks, the token that is masked most often in `fit`. `target`: what is read
    instead of all these, times `sign`, so that it rises with the second class."""

    subject: Subject
    kind: Kind
    metric: str
    weight: Tensor | None = None
    bias: Tensor | None = None
    commonest: float | None = None
    target: Target | None = None
    sign: float = 1.0

    def chance(self, y: np.ndarray) -> float:
        """The metric on labels `y` without any knowledge of the input; of masked tasks that of always naming the
        commonest token."""
        if self.commonest is not None:
            return float(np.mean(y == self.commonest))
        if self.metric == "balanced_accuracy":
            return 0.5 if self.target is not None else 1 / max(2, self._probe()[0].shape[1])
        return 0.5 if self.metric.endswith("auroc") else 0.0

    @property
    def caveat(self) -> str | None:
        """A warning where the head of a fine-tuned subject is not what is read, and of a probe that stood before."""
        if self.target is not None and self.target.probe is not None:
            return (
                f"{self.target.name} was fitted before: of sequences that it was fitted on, the subject's own metric "
                "is not one of unseen data"
            )
        if self.weight is None or self.subject.task is None:
            return None
        return (
            "what is read is a linear probe that was fitted to your labels on the final hidden state, not the "
            f"subject's own head: --target {self.subject.task.instead.removesuffix(' or a probe')} reads that"
        )

    def outputs(self, examples: Sequence[Example], batch: Batch, final: Tensor) -> Tensor:
        """`[n, outputs]` of a batch from `Subject.hidden`, `[batch, tokens, d_read]`: one row per example, or per
        labelled token. Masked tasks have two outputs: 1 for a hit, and logit of the true token minus the mean."""
        if self.target is not None:
            return self.sign * self.target.value(self.subject, batch, final)[:, None]
        if self.kind in ("class", "regression"):
            return pool(self.subject, batch, final) @ self._probe()[0] + self._probe()[1]
        row = torch.tensor([i for i, e in enumerate(examples) for _ in e.places])
        place = torch.tensor([p for e in examples for p in e.places])
        if self.kind == "residue":
            return final[row, place] @ self._probe()[0] + self._probe()[1]
        places = torch.tensor([self.subject.reading_position(int(p)) for p in place])
        logits = self.subject.head(final[row, places])
        if self.kind == "masked":
            true = torch.tensor([int(e.y) for e in examples], device=logits.device)
            contrast = logits.gather(1, true[:, None]) - logits.mean(1, keepdim=True)
            return torch.cat([(logits.argmax(1, keepdim=True) == true[:, None]).float(), contrast], 1)
        before, after = torch.tensor([(b, a) for e in examples for _, b, a in e.swaps], device=logits.device).T
        change = logits.gather(1, after[:, None]) - logits.gather(1, before[:, None])
        return change.new_zeros(len(examples), 1).index_add(0, row.to(change.device), change)

    def _probe(self) -> tuple[Tensor, Tensor]:
        assert self.weight is not None
        assert self.bias is not None
        return self.weight.to(self.subject.device), self.bias.to(self.subject.device)

    def labels(self, examples: Sequence[Example]) -> tuple[np.ndarray, list[str]]:
        """(y `[n]`, group of each) of the rows of `outputs` over all examples, in order."""
        y = np.concatenate([np.atleast_1d(e.y) for e in examples]).astype(float)
        return y, [e.group for e in examples for _ in np.atleast_1d(e.y)]

    def coefficients(self, examples: Sequence[Example]) -> np.ndarray:
        """c `[n, outputs]`: Σ c · outputs is what attribution follows, the covariance of outputs with the standardised
        labels (class by class where there are several), or for masked tasks the mean contrast. It rises with the
        metric, and adding a constant to all outputs leaves it alone."""
        y, _ = self.labels(examples)
        if self.kind == "masked":
            return np.stack([np.zeros(len(y)), np.ones(len(y))], 1) / len(y)
        if self.weight is not None and self.weight.shape[1] > 1:
            hot = np.eye(self.weight.shape[1])[y.astype(int)]
            return (hot - hot.mean(0)) / len(y)
        return ((y - y.mean()) / y.std())[:, None] / len(y)

    def score(self, predicted: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return METRICS[self.metric](predicted, y, weights)


def target_readout(subject: Subject, data: TaskData, metric: str | None, text: str) -> Readout:
    """What the target `text` reads, see `subjects.targets`; which of two classes it is about its name tells. Raises
    InputError for a target of single tokens, and labels that it does not predict."""
    kind, _, rest = text.partition(":")
    single = kind in ("mask", "diff", "mutation", "label")
    if single or data.kind not in ("class", "regression") or len(data.classes) > 2:
        raise InputError(
            f"--target {text}: a task is read from a probe:, class: or output: of whole sequences, and its labels are "
            "two classes or numbers; leave --target out and a readout is fitted."
        )
    check_target(text, subject)
    example = min((e for part in data.parts.values() for e in part), key=lambda e: len(e.ids))
    target = parse_target(text, subject, subject.tokenize([example.text]))
    if target.place is not None:
        raise InputError(f"--target {text} reads a single token: a task asks about whole sequences.")
    sign = 1.0
    if data.kind == "class":
        own = [] if target.probe is None else [*target.probe.config.outputs]
        asked = own[0] if len(own) == 1 else rest.rpartition(":")[2]
        named = [c for c in data.classes if asked == c or asked.startswith(f"{c}-")]
        if not named:
            raise InputError(
                f"--target {text} is about {asked!r}, which is none of the classes of {data.label}, "
                f"{' and '.join(data.classes)}: label them as the target does."
            )
        sign = 1.0 if data.classes.index(max(named, key=len)) else -1.0
    metric = checked_metric(data, metric)
    return Readout(subject.reading(target.reads), data.kind, metric, target=target, sign=sign)


@torch.no_grad()
def fit_readout(subject: Subject, data: TaskData, metric: str | None, seed: int) -> Readout:
    """Raises InputError for a metric the kind of task does not have, SubjectError where the head is needed and the
    subject has none."""
    metric = checked_metric(data, metric)
    if data.kind in ("masked", "mutation"):
        commonest = min(multimode(float(e.y) for e in data.parts["fit"])) if data.kind == "masked" else None
        return Readout(subject, data.kind, metric, commonest=commonest)
    x, y, groups = [], [], []
    for rows, batch in data.batches("fit", BATCH_TOKENS, subject):
        examples = [data.parts["fit"][i] for i in rows]
        with fast_kernels(subject):
            final = subject.hidden(batch.ids, batch.mask)
        if data.kind == "residue":
            x.append(torch.cat([final[i, [*e.places]] for i, e in enumerate(examples)]))
        else:
            x.append(pool(subject, batch, final))
        y += [np.concatenate([np.atleast_1d(e.y) for e in examples])]
        groups += [e.group for e in examples for _ in np.atleast_1d(e.y)]
    weight, bias = _fit(torch.cat(x).double().cpu().numpy(), np.concatenate(y), np.asarray(groups), data.kind, seed)
    return Readout(subject, data.kind, metric, weight, bias)


def checked_metric(data: TaskData, metric: str | None) -> str:
    """`metric`, or the first that the kind of task has. Raises InputError for one it does not have."""
    several = data.kind == "class" and len(data.classes) > 2
    allowed = ("macro_auroc", "balanced_accuracy") if several else ALLOWED[data.kind]
    if metric is not None and metric not in allowed:
        raise InputError(f"--metric {metric} does not suit a {data.kind} task: use {' or '.join(allowed)}.")
    return metric or allowed[0]


def _fit(x: np.ndarray, y: np.ndarray, groups: np.ndarray, kind: Kind, seed: int) -> tuple[Tensor, Tensor]:
    """(`[d_model, outputs]`, `[outputs]`) of the probe on raw hidden states, standardisation folded in."""
    if len(x) > FITTING_TOKENS:
        chosen = np.random.default_rng((seed, 4)).permutation(len(x))[:FITTING_TOKENS]
        x, y, groups = x[chosen], y[chosen], groups[chosen]
    task = "regression" if kind == "regression" else "classification"
    n_folds = min(4, len(np.unique(groups)))
    folds = GroupKFold(n_folds) if kind == "regression" else StratifiedGroupKFold(n_folds)
    strengths = STRENGTHS["regression" if kind == "regression" else "class"]
    (weight, bias), _ = searched(x, y, task, strengths, folds, groups)
    return torch.from_numpy(weight).float(), torch.from_numpy(bias).float()


def prediction_table(readout: Readout, data: TaskData) -> pl.DataFrame:
    """One row per sequence, in the order of the input: `index`, `part`, `group`, `predicted`, and of classes the
    probability of each as `p_CLASS`; see docs/circuit.md."""
    rows = []
    for part in PARTS:
        every = predictions(readout, data.parts[part], lambda items, _: items, lambda b: hidden(readout.subject, b))
        for example, outputs in zip(data.parts[part], every, strict=True):
            rows.append({"index": example.index, "part": part, "group": example.group} | _predicted(data, outputs))
    return pl.DataFrame(rows, infer_schema_length=None).sort("index")


def _predicted(data: TaskData, outputs: np.ndarray) -> dict[str, Any]:
    if data.kind == "class":
        shares = class_probabilities(outputs)
        named = {f"p_{name}": float(share) for name, share in zip(data.classes, shares, strict=True)}
        return {"predicted": data.classes[int(shares.argmax())]} | named
    if data.kind == "residue":
        return {"predicted": expit(outputs[:, 0]).tolist()}
    return {"predicted": bool(outputs[0, 0]) if data.kind == "masked" else float(outputs[0, 0])}


def class_probabilities(outputs: np.ndarray) -> np.ndarray:
    """`[classes]` from the outputs `[1, outputs]` of one example; one output is the log-odds of the second class."""
    return softmax(outputs[0] if outputs.shape[1] > 1 else np.asarray([0.0, outputs[0, 0]]))


@torch.no_grad()
def predictions(
    readout: Readout, examples: Sequence[Example], progress: Progress, run: Callable[[Batch], Tensor]
) -> list[np.ndarray]:
    """Per example float64 `[rows, outputs]` of the readout on final hidden states that `run` gives."""
    found: list[np.ndarray] = []
    for rows, batch in progress(batches(examples, BATCH_TOKENS, readout.subject), "report sequences"):
        chosen = [examples[i] for i in rows]
        outputs = readout.outputs(chosen, batch, run(batch)).double().cpu().numpy()
        found += np.split(outputs, np.cumsum([np.size(e.y) for e in chosen])[:-1])
    return found


def hidden(subject: Subject, batch: Batch) -> Tensor:
    """Final hidden states, by the fastest kernels."""
    with fast_kernels(subject):
        return subject.hidden(batch.ids, batch.mask)
