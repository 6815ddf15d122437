"""Bases in which a checkpoint's activations are written: a dictionary's features, and what stands beside them.

    dictionary   trained on general sequences, never on the task
    neurons      the checkpoint's MLP neurons of the same layers, either sign, those that write most
    pca          ± principal components of what the dictionary writes to
    untrained    a dictionary of the same shape trained on an untrained copy

Neurons and components are `evaluation.controls`: as many are active per token as of the dictionary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from scipy import sparse

from isotrace.activations.corpus import Corpus
from isotrace.base.errors import InputError
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import active_features, batches_of
from isotrace.evaluation.controls import Sample, mean_l0, neurons, principal_components
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Subject
from isotrace.transfer.predictors.evidence import Basis, Evidence
from isotrace.transfer.predictors.predictor import Need, predictor

BASES = ("dictionary", "neurons", "pca", "untrained")


@torch.no_grad()
def bases_of(
    subject: Subject, dictionary: Dictionary, corpus: Sequence[str], seed: int, untrained: Basis | None = None
) -> dict[str, Basis]:
    """`corpus`: general sequences that components are fitted on. Neurons are left out where layers have different
    numbers of them, or the dictionary writes elsewhere. `untrained`: an untrained copy and a dictionary trained on it.
    """
    sample, config = Sample.of(subject, Corpus.of(subject, corpus), mask_rate=0.0, seed=seed), dictionary.config
    k = mean_l0(dictionary, sample)
    found = {"dictionary": Basis(subject, dictionary)}
    sizes = {len(subject.neuron_writes(layer)[0]) for layer in config.layers}
    if config.hookpoint_out == "layers.{}.mlp_out" and len(sizes) == 1:
        found["neurons"] = Basis(subject, neurons(subject, config.layers, k))
    found["pca"] = Basis(subject, principal_components(dictionary, sample, k))
    return found | ({} if untrained is None else {"untrained": untrained})


def with_features(evidence: Evidence, bases: Mapping[str, Basis]) -> Evidence:
    """The same with the activations of its texts in every basis."""
    if not evidence.texts:
        raise InputError("there are no texts whose activations could be read: give texts.")
    features = {name: pooled_features(one, evidence.texts) for name, one in bases.items()}
    return replace(evidence, features=features, bases=dict(bases))


def pooled_features(basis: Basis, texts: Sequence[str]) -> np.ndarray:
    """float64 `[N, 2 · features]`: the mean over tokens that are no special ones, then the maximum, of those features
    of all layers that are active in any text; one column where nothing is."""
    subject, dictionary = basis.subject, basis.dictionary
    if is_pooled(dictionary.config.reads):
        raise InputError("the dictionary reads pooled vectors: give one of tokens.")
    width, layers = dictionary.config.n_features, {layer: i for i, layer in enumerate(dictionary.config.layers)}
    parts, n_columns = batches_of(subject, texts), width * len(layers)
    rows, columns, sums, peaks = [], [], [], []
    active = active_features(subject, dictionary, (batch.to(subject.device) for _, batch in parts))
    for (places, batch), found in zip(parts, active, strict=True):
        real = (batch.mask & ~subject.special(batch.ids)).cpu().numpy()
        found = found[real[found["sequence"], found["position"]]]
        column = np.asarray([layers[layer] for layer in found["layer"]], dtype=np.int64) * width + found["feature"]
        keys, inverse = np.unique(found["sequence"] * n_columns + column, return_inverse=True)
        total, peak = np.bincount(inverse, found["activation"], len(keys)), np.zeros(len(keys))
        np.maximum.at(peak, inverse, found["activation"])
        rows.append(places[keys // n_columns])
        columns.append(keys % n_columns)
        sums.append(total / real.sum(1)[keys // n_columns])
        peaks.append(peak)
    at = np.concatenate(rows), np.unique(np.concatenate(columns), return_inverse=True)[1]
    shape = len(texts), int(at[1].max(initial=0)) + 1
    pooled = [sparse.csr_array((np.concatenate(values), at), shape=shape).toarray() for values in (sums, peaks)]
    return np.concatenate(pooled, 1)


def active_columns(pooled: np.ndarray) -> np.ndarray:
    """Of some rows of `pooled_features`, as these texts alone have them."""
    means, peaks = np.split(pooled, 2, axis=1)
    used = np.any(peaks > 0, axis=0)
    used[0] |= not used.any()
    return np.concatenate([means[:, used], peaks[:, used]], 1)


def features_in(evidence: Evidence, basis: str) -> np.ndarray:
    """Raises InputError where there are none."""
    if basis not in evidence.features:
        raise InputError(f"it needs activations of the basis {basis}, and there are none (with_features)")
    return evidence.features[basis]


def of_each_basis(
    name: str,
    *,
    source: str,
    direction: Literal[1, -1] = 1,
    passes: float = 2,
    needs: tuple[Need, ...] = (),
    sampled: tuple[float, int] = (0, 0),
) -> Callable[[Callable[[Evidence, str], float]], Callable[[Evidence, str], float]]:
    """Decorator of `run(evidence, basis)`, which becomes a predictor `name_basis` for each of BASES."""

    def add(run: Callable[[Evidence, str], float]) -> Callable[[Evidence, str], float]:
        about = (run.__doc__ or "").partition("\n\n")[0].replace("\n    ", " ").strip()
        for basis in BASES:
            given = predictor(
                f"{name}_{basis}", source=source, direction=direction, passes=passes, needs=(*needs, "features"),
                about=f"{about} Basis: {basis}.", sampled=sampled,
            )  # fmt: skip
            given(lambda evidence, basis=basis: run(evidence, basis))
        return run

    return add
