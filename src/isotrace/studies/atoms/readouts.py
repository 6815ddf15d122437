"""Linear readouts of a pool of molecules: pooled once for all layers, then fitted for one label after another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from isotrace.base.progress import Progress
from isotrace.datasets.tasks import Example
from isotrace.probing.crossed import STRENGTHS
from isotrace.probing.linear import searched
from isotrace.probing.states import pooled_states
from isotrace.stats.bootstrap import bootstrap_weights, interval
from isotrace.stats.metrics import auroc, r2
from isotrace.subjects.probe import Pool, Probe, ProbeConfig
from isotrace.subjects.subject import Subject
from isotrace.subjects.targets import Target


def layers(subject: Subject) -> tuple[int, ...]:
    """The embeddings and every layer."""
    return tuple(range(subject.n_layers + 1))


def pooled(subject: Subject, texts: Sequence[str], how: Pool, progress: Progress) -> np.ndarray:
    """float32 `[texts, d_pooled]`: the hidden states of all `layers` side by side, pooled over the tokens."""
    rows = [(text, subject.tokenized([text])[0][0]) for text in texts]
    examples = [Example(i, text, np.asarray(ids), "", np.nan) for i, (text, ids) in enumerate(rows)]
    return pooled_states(subject, examples, layers(subject), how, progress)


@dataclass(frozen=True)
class Readout:
    """A fitted target with its worth on molecules it has not seen, AUROC of two classes, R² of numbers, and its
    `values [n_test]` there."""

    target: Target
    metric: str
    worth: float
    worth_ci: tuple[float, float]
    n_train: int
    values: np.ndarray


def fitted(
    subject: Subject,
    name: str,
    about: str,
    unit: str,
    parts: dict[str, tuple[np.ndarray, np.ndarray]],
    how: Pool,
    seed: int,
) -> Readout:
    """`parts`: (pooled states, labels) of train, valid and test. The penalty is chosen on valid, on which the
    readout is fitted too; worth is on test. Labels of bool dtype are classes."""
    classes = parts["train"][1].dtype == bool
    kind = "classification" if classes else "regression"
    n = len(parts["train"][1])
    x, labels = (np.concatenate([parts[part][side] for part in ("train", "valid")]) for side in (0, 1))
    inner = [(np.arange(n), np.arange(n, len(labels)))]
    (weight, bias), _ = searched(x, labels, kind, STRENGTHS[kind], inner)
    y, predicted = parts["test"][1].astype(float), (parts["test"][0] @ weight + bias)[:, 0]
    weights = np.concatenate([np.ones((1, len(y))), bootstrap_weights(len(y), 1_000, seed)])
    draws = auroc(predicted[:, None], y, weights) if classes else r2(predicted[:, None], y, weights)
    config = ProbeConfig(
        "isotrace-probe", 2, name, about, kind, (name,), unit, layers(subject), how, subject.files.weights_sha256
    )
    probe = Probe(config, torch.from_numpy(weight).float(), torch.from_numpy(bias).float())
    target = Target("probe", f"probe:{name}", about, unit, probe=probe)
    metric = "AUROC" if classes else "R²"
    return Readout(target, metric, float(draws[0]), interval(draws[1:]), n, predicted)
