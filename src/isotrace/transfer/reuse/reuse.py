"""How much of what a pretrained subject knew an adapted one uses, on the held-out part of its task.

The dictionary was trained on the subject before, on general sequences. Beside it stand random features whose writes are
fitted, and the subject's own neurons (`evaluation.controls`), with as many active per token and both of the subject
before, and the same dictionary in an untrained copy. Random features are fitted on what the task is learned from.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch

from isotrace.activations.corpus import Corpus
from isotrace.base.progress import Progress, silent
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.discovery.overlap import overlap
from isotrace.discovery.tasks.basis import Basis, Keep, Statistics
from isotrace.evaluation.controls import Sample, mean_l0, neurons, random_features
from isotrace.stats.bootstrap import group_weights
from isotrace.subjects.subject import Subject
from isotrace.transfer.adapting.tasks import TaskTable
from isotrace.transfer.reuse.matrices import matrices
from isotrace.transfer.reuse.reading import Made, Read, State, correlations, read

MOST, TOP = 200, 50
"""Sequences of the held-out part that are taken apart, drawn at random where there are more; features of a circuit."""
DICTIONARY = "dictionary"


@dataclass(frozen=True, eq=False)
class Reuse:
    """`reads`: of the states before, after and untrained, this one in the dictionary alone. `weights [1 + draws, n]`:
    the sequences as they are, then draws of whole groups. `correlation [layers, F]`: of every feature's activation
    before and after. `overlaps`: of each label, pairs of circuits as `discovery.overlap.overlap` gives them. `l0`:
    active per token and layer. `matrices`: as the function of that name gives them."""

    dictionary: Dictionary
    reads: dict[str, Read]
    weights: np.ndarray
    correlation: np.ndarray
    overlaps: dict[str, list[dict]]
    l0: int
    matrices: pl.DataFrame

    @property
    def names(self) -> list[str]:
        """The dictionary and what stands beside it."""
        return [*self.reads["before"].explained]

    def features(self, label: str) -> pl.DataFrame:
        """A row per feature that is active before or after: `correlation`, and before and after the mean number of
        `active` tokens a sequence, `attribution`, its share of Σ|features| of the output `label`, and `effect`, what it
        adds to the output per unit of activation."""
        shape, n = self.correlation.shape, self.weights.shape[1]
        columns = {
            "layer": np.repeat(self.dictionary.config.layers, shape[1]),
            "feature": np.tile(np.arange(shape[1]), shape[0]), "correlation": self.correlation.ravel(),
        }  # fmt: skip
        for name in ("before", "after"):
            one = self.reads[name]
            made = one.made[DICTIONARY, label]
            whole = made.absolute.sum()
            with np.errstate(invalid="ignore", divide="ignore"):
                columns |= {
                    f"active_{name}": one.fired / n,
                    f"attribution_{name}": (made.absolute / whole).ravel(),
                    f"effect_{name}": (made.signed / made.activation).ravel(),
                }
        frame = pl.DataFrame(columns).with_columns(pl.lit(label).alias("label"))
        return frame.filter((pl.col("active_before") > 0) | (pl.col("active_after") > 0)).fill_nan(None)


def controls_of(subject: Subject, dictionary: Dictionary, table: TaskTable, seed: int) -> tuple[dict, int]:
    """(random features and neurons by name, the number active per token). Neurons are left out where layers have
    different numbers of them."""
    texts = [table.examples[i].text for i in table.members("train")]
    sample, layers = Sample.of(subject, Corpus.of(subject, texts), mask_rate=0.0, seed=seed), dictionary.config.layers
    k = mean_l0(dictionary, sample)
    found = {"random": random_features(dictionary, sample, k, seed)}
    if len({len(subject.neuron_writes(layer)[0]) for layer in layers}) == 1:
        found["neurons"] = neurons(subject, layers, k)
    return found, k


def reuse(
    before: State, after: State, untrained: State, dictionary: Dictionary, table: TaskTable, *, seed: int,
    n_bootstrap: int = 1_000, progress: Progress = silent,
) -> Reuse:  # fmt: skip
    """`before`: the subject that `dictionary` was trained on, see `contributions.require_writes_of_mlps`, with a
    readout of it; `after`: adapted to `table`; `untrained`: a copy with random weights."""
    members = table.members("test")
    if len(members) > MOST:
        members = np.sort(np.random.default_rng((seed, 18)).permutation(members)[:MOST])
    with torch.no_grad():
        others, k = controls_of(before.subject, dictionary, table, seed)
    own: Mapping[str, Dictionary] = {DICTIONARY: dictionary, **others}
    rows = members.tolist()
    reads = {
        "before": read(before, own, table, rows, seed, pretraining=True, progress=progress),
        "after": read(after, own, table, rows, seed, progress=progress),
        "untrained": read(untrained, {DICTIONARY: dictionary}, table, rows, seed, progress=progress),
    }
    shape = dictionary.config.n_layers, dictionary.config.n_features
    density = reads["before"].fired.reshape(shape) / reads["before"].explained[DICTIONARY].tokens.sum()
    overlaps, first = {}, table.properties[0].label
    for label in (prop.label for prop in table.properties):
        circuits = {name: circuit(reads[name].made[DICTIONARY, label]) for name in ("before", "after")}
        if (masked := reads["before"].pretraining) is not None:
            circuits["pretraining"] = circuit(masked)
        basis = Basis(before.subject, Features(dictionary))
        overlaps[label] = overlap(circuits, basis, Statistics((), tuple(map(torch.from_numpy, density))))
    used = [kept.numpy() for kept in circuit(reads["after"].made[DICTIONARY, first])]
    return Reuse(
        dictionary, reads, group_weights([table.examples[i].group for i in rows], n_bootstrap, (seed, 19)),
        correlations(reads["before"].active, reads["after"].active).reshape(shape), overlaps, k,
        matrices(before.subject, after.subject, dictionary, used),
    )  # fmt: skip


def circuit(made: Made) -> Keep:
    """The TOP features that contribute most, indices per layer; fewer where fewer contribute."""
    flat, n = made.absolute.ravel(), made.absolute.shape[1]
    best = np.argsort(-flat, kind="stable")[:TOP]
    best = np.sort(best[flat[best] > 0])
    return tuple(torch.from_numpy(best[best // n == layer] % n) for layer in range(len(made.absolute)))
