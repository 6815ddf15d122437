"""Linear readouts of a pool of molecules: pooled once for all layers, then fitted for one label after another."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from isotrace.base.progress import Progress
from isotrace.stats.bootstrap import bootstrap_weights, interval
from isotrace.stats.metrics import auroc, r2
from isotrace.subjects.probe import Probe, ProbeConfig, pool
from isotrace.subjects.subject import Subject
from isotrace.subjects.targets import Target

STRENGTHS = {"classification": (0.01, 0.1, 1.0), "regression": (30.0, 300.0, 3_000.0)}
"""Regularisation to choose from: C of the logistic regression, α of the ridge."""


def layers(subject: Subject) -> tuple[int, ...]:
    """The embeddings and every layer."""
    return tuple(range(subject.n_layers + 1))


@torch.no_grad()
def pooled(subject: Subject, texts: Sequence[str], progress: Progress) -> np.ndarray:
    """`[texts, d_read]`: pooled hidden states of all `layers` side by side."""
    reads = layers(subject)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    found = np.zeros((len(texts), len(reads) * subject.d_model))
    for at in progress(range(0, len(order), 64), "reading molecules"):
        rows = order[at : at + 64]
        batch = subject.tokenize([texts[i] for i in rows])
        found[rows] = pool(subject, batch, subject.hidden(batch.ids, batch.mask, reads)).double().numpy()
    return found


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
    seed: int,
) -> Readout:
    """`parts`: (pooled states, labels) of train, valid and test. Regularisation is chosen on valid, worth is on test.
    Labels of bool dtype are classes."""
    classes = parts["train"][1].dtype == bool
    kind = "classification" if classes else "regression"
    scaler = StandardScaler().fit(parts["train"][0])
    z = {part: scaler.transform(x) for part, (x, _) in parts.items()}
    worth = roc_auc_score if classes else r2_score
    tell = lambda model, part: model.decision_function(z[part]) if classes else model.predict(z[part])  # noqa: E731
    models = [
        LogisticRegression(C=s, max_iter=2_000, class_weight="balanced") if classes else Ridge(alpha=s)
        for s in STRENGTHS[kind]
    ]
    fits = [model.fit(z["train"], parts["train"][1]) for model in models]
    best = max(fits, key=lambda model: worth(parts["valid"][1], tell(model, "valid")))
    y, predicted = parts["test"][1].astype(float), tell(best, "test")
    weights = np.concatenate([np.ones((1, len(y))), bootstrap_weights(len(y), 1_000, seed)])
    draws = auroc(predicted[:, None], y, weights) if classes else r2(predicted[:, None], y, weights)
    weight = np.ravel(best.coef_) / np.asarray(scaler.scale_)
    bias = np.ravel(best.intercept_) - weight @ np.asarray(scaler.mean_)
    config = ProbeConfig(
        "isotrace-probe", 2, name, about, kind, (name,), unit, layers(subject), "mean", subject.files.weights_sha256
    )
    probe = Probe(config, torch.from_numpy(weight[:, None]).float(), torch.from_numpy(bias).float())
    target = Target("probe", f"probe:{name}", about, unit, probe=probe)
    metric = "AUROC" if classes else "R²"
    return Readout(target, metric, float(draws[0]), interval(draws[1:]), len(parts["train"][1]), predicted)
