"""A probe of a property, and whether the subject knows that property at all.

1. read      pooled hidden states of every labelled sequence, of the subject and of an untrained copy; token counts;
             fingerprints
2. cross     whole groups of relatives (scaffolds, clusters) are held out in turn; on the others the penalty is chosen
             on one more fold, a readout fitted, its outputs calibrated (Platt 1999) on that fold
3. compare   the same folds for every input: subject, untrained copy, token counts, fingerprint forest; intervals and
             differences from one bootstrap over groups
4. tell      does the subject know it: better than a constant, and than its untrained copy, both with intervals
5. fit       the probe that is kept: on all sequences, calibrated on what the folds predicted

Where a column names the parts, `test` is what is held out, `valid` chooses, and the probe that is kept has seen both
but never `test`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from isotrace.annotation.nulls.sources import untrained_subject
from isotrace.base.errors import InputError
from isotrace.base.progress import Progress, silent
from isotrace.base.settings import checked_seed
from isotrace.datasets.tasks import Example, Labelled
from isotrace.domains.domain import Domain
from isotrace.probing.crossed import calibrated, crossed, forest, learning_curve, metrics_of
from isotrace.probing.folds import folds_named, folds_of
from isotrace.probing.linear import Task, fitted
from isotrace.probing.states import pooled_states, token_counts
from isotrace.stats.bootstrap import group_weights, interval, valued
from isotrace.stats.metrics import METRICS
from isotrace.subjects.probe import Pool, Probe, ProbeConfig
from isotrace.subjects.subject import Subject

MAX_TOKENS = 20_000
"""Labelled atoms or residues that are read at most, drawn at random."""
LEAST = 20
"""Fewer examples allow no statement."""


@dataclass(frozen=True)
class ProbeSettings:
    """`layers` None = all, counted as in `Subject.hidden`. `pool` token is for labels of atoms or residues alone.
    `n_folds`: at most; there are no more than groups. `baselines`: also an untrained copy, token counts, a forest."""

    layers: tuple[int, ...] | None = None
    pool: Pool = "mean"
    n_folds: int = 5
    n_bootstrap: int = 1_000
    baselines: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        checked_seed(self.seed)


@dataclass(frozen=True, eq=False)
class Probed:
    """`probe`: fitted on all rows. `y [n]`, `groups`, `places` (example of each row), `held` bool: rows that were
    predicted by a readout that had not seen their group; `outputs[source] [n, outputs]` those predictions, NaN where
    not held. `draws [1 + n_bootstrap, rows held]` weights, the first all ones. `curve`: (rows fitted on, score)."""

    probe: Probe
    data: Labelled
    y: np.ndarray
    places: np.ndarray
    held: np.ndarray
    outputs: dict[str, np.ndarray]
    draws: np.ndarray
    curve: tuple[tuple[float, float], ...]
    strength: float
    split: str
    fingerprints: np.ndarray | None

    def scores(self, metric: str, source: str = "subject") -> np.ndarray:
        """`[1 + n_bootstrap]` of the rows held."""
        return METRICS[metric](self.outputs[source][self.held], self.y[self.held], self.draws)

    @property
    def metrics(self) -> tuple[str, ...]:
        return metrics_of(self.probe.config.task, self.data.classes)

    @property
    def chance(self) -> np.ndarray:
        """`[1 + n_bootstrap]`: the first metric of an answer that knows no sequence, the mean of the labels."""
        if self.probe.task != "regression":
            return np.full(len(self.draws), 0.5)
        y = self.y[self.held]
        return METRICS["rmse"](np.full((len(y), 1), self.y.mean()), y, self.draws)

    def better(self, other: np.ndarray) -> tuple[float, float, float]:
        """(value, low, high): by how much the subject's first metric is better than `other [1 + n_bootstrap]`."""
        gain = self.scores(self.metrics[0]) - other
        gain = -gain if self.metrics[0] == "rmse" else gain
        return float(gain[0]), *interval(gain[1:])


def fit_probe(
    subject: Subject, domain: Domain, data: Labelled, settings: ProbeSettings, *, name: str, unit: str | None = None,
    description: str | None = None, split: str | None = None, positive: str | None = None,
    progress: Progress = silent,
) -> Probed:  # fmt: skip
    """`split`: the column that names the parts, as `data` was read with. `positive`: of two classes that whose log-odds
    is read; left out, the second in the alphabet. Raises InputError for fewer than LEAST rows,
    labels of one class, constant numbers, too few groups, a class in too few groups, layers that are not there."""
    data = data if positive is None else _with_positive(data, positive)
    token = data.kind == "residue"
    how: Pool = "token" if token else settings.pool
    if settings.pool == "token" and not token:
        raise InputError("--pool token is for labels of atoms or residues, a string of 0 and 1: give mean, max or cls.")
    layers = _layers(subject, settings.layers)
    if token:
        chosen = _some_tokens(data.examples, settings.seed)
        data = replace(
            data, examples=tuple(data.examples[i] for i in chosen), given=tuple(data.given[i] for i in chosen)
        )
    examples = data.examples
    y = np.concatenate([np.atleast_1d(e.y) for e in examples]).astype(float)
    places = np.repeat(np.arange(len(examples)), [np.size(e.y) for e in examples])
    groups = np.asarray([examples[i].group for i in places])
    task: Task = "regression" if data.kind == "regression" else "classification"
    _check(data, y)
    folds = (
        folds_named(data, split, settings.seed)
        if split
        else folds_of(task, y, groups, data.classes, settings.n_folds, settings.seed)
    )
    inputs: dict[str, np.ndarray] = {"subject": pooled_states(subject, examples, layers, how, progress)}
    prints = None
    if settings.baselines:
        blank = untrained_subject(subject, settings.seed)
        inputs["untrained"] = pooled_states(blank, examples, layers, how, progress)
        inputs["tokens"] = token_counts(subject, examples, how)
        prints = None if token else domain.fingerprints([e.text for e in examples])
    held = np.zeros(len(y), dtype=bool)
    for _, _, test in folds:
        held[test] = True
    crosses = {s: crossed(x, y, task, folds, data.classes) for s, x in progress([*inputs.items()], "fitting")}
    outputs, own = {source: one.outputs for source, one in crosses.items()}, crosses["subject"]
    if prints is not None:
        outputs["forest"] = forest(prints, y, task, folds, settings.seed)
    draws = group_weights(groups[held].tolist(), settings.n_bootstrap, (settings.seed, 3))
    strength = float(np.exp(np.median(np.log(own.strengths))))
    metric = metrics_of(task, data.classes)[0]
    curve = learning_curve(inputs["subject"], y, groups, task, folds, strength, metric, settings.seed)
    weight, bias = own.readouts[0]
    if split is None:
        weight, bias = calibrated(fitted(inputs["subject"], y, task, strength), own.raw[held], y[held], task)
    outputs_of = _outputs(data)
    about = f"{data.label}, log-odds of {outputs_of[0]}" if len(data.classes) == 2 else data.label
    own_unit = "log-odds" if len(data.classes) == 2 or token else "logit" if data.classes else data.label
    config = ProbeConfig(
        "isotrace-probe", 2, name, description or about, task,
        outputs_of, unit or own_unit,
        layers, how, subject.files.weights_sha256,
        float(y.mean()) if task == "regression" else None, float(y.std()) if task == "regression" else None,
    )  # fmt: skip
    probe = Probe(config, torch.from_numpy(weight).float(), torch.from_numpy(bias).float())
    said = f"column {split!r}" if split else f"{len(folds)} folds of whole groups"
    return Probed(probe, data, y, places, held, outputs, draws, curve, strength, said, prints)


def _with_positive(data: Labelled, positive: str) -> Labelled:
    if len(data.classes) != 2 or positive not in data.classes:
        raise InputError(
            f"--positive {positive}: it names one of two classes, and column {data.label!r} has "
            f"{', '.join(data.classes[:10]) or 'none'}."
        )
    if data.classes[1] == positive:
        return data
    return replace(data, classes=data.classes[::-1], examples=tuple(replace(e, y=1 - e.y) for e in data.examples))


def _outputs(data: Labelled) -> tuple[str, ...]:
    if data.kind == "class":
        return data.classes if len(data.classes) > 2 else data.classes[1:]
    return (data.label,)


def _layers(subject: Subject, layers: tuple[int, ...] | None) -> tuple[int, ...]:
    every = range(subject.n_layers + 1)
    if layers is None:
        return tuple(every)
    if not layers or len(set(layers)) < len(layers) or not set(layers) <= set(every):
        raise InputError(
            f"--layers {','.join(map(str, layers))}: {subject.source} has the hidden states 0 (what the first block "
            f"reads) to {subject.n_layers} (the final one); give some of them once, or all."
        )
    return tuple(sorted(layers))


def _some_tokens(examples: Sequence[Example], seed: int) -> list[int]:
    """Whole examples in random order, so many that they hold at most MAX_TOKENS labelled tokens."""
    order = np.random.default_rng((seed, 4)).permutation(len(examples))
    total = np.cumsum([len(examples[i].places) for i in order])
    return sorted(order[: max(1, int((total <= MAX_TOKENS).sum()))].tolist())


def _check(data: Labelled, y: np.ndarray) -> None:
    if data.kind not in ("class", "regression", "residue"):
        raise InputError(
            f"a probe reads classes, numbers or labels of residues, not {data.kind}: isotrace circuit does."
        )
    if len(y) < LEAST:
        raise InputError(f"{len(y)} rows with a label are too few for a probe: give at least {LEAST}.")
    if len(np.unique(y)) < 2:
        what = data.classes[0] if data.kind == "class" else f"{y[0]:g}"
        raise InputError(f"all rows have the label {what}: there is nothing to tell apart.")


def about(found: Probed) -> dict[str, Any]:
    """Performance of every source, differences and the verdict, as data."""
    sources = {source: {m: valued(found.scores(m, source)) for m in found.metrics} for source in found.outputs}
    first = found.metrics[0]
    gains = {"constant": found.better(found.chance)}
    gains |= {s: found.better(found.scores(first, s)) for s in found.outputs if s != "subject"}
    return {
        "metrics": list(found.metrics),
        "performance": sources | {"constant": {first: valued(found.chance)}},
        "better_than": {s: {"by": by, "ci": [low, high]} for s, (by, low, high) in gains.items()},
        "knows": knows(gains),
        "verdict": verdict(gains),
    }


Gains = dict[str, tuple[float, float, float]]


def knows(gains: Gains) -> bool:
    """Better than a constant and than an untrained copy, both with their interval."""
    return all(gains[one][1] > 0 for one in ("constant", "untrained") if one in gains)


def verdict(gains: Gains) -> str:
    """The plain sentence."""
    if not gains["constant"][1] > 0:
        return "The subject does not know this: its hidden states predict it no better than a constant does."
    if "untrained" in gains and not gains["untrained"][1] > 0:
        return (
            "Nothing shows that the subject knows this: an untrained copy of it predicts it as well, so what is read "
            "here need not have been learned in training."
        )
    said = "The subject knows this: better than a constant"
    said += " and than an untrained copy of it" if "untrained" in gains else ""
    if "forest" in gains:
        low, high = gains["forest"][1:]
        how = "better than" if low > 0 else "worse than" if high < 0 else "as well as"
        said += f"; it predicts it {how} a forest on fingerprints"
    return said + "."
