"""Which parts make the best small circuits of a task: neurons, groups of neurons, features of a dictionary, groups with
the neurons they leave, or principal components of equal rank; ranked by attribution patching or by a learned mask.

Everything is chosen on the discovery part (groups of sequences halved, ranked on one half, judged on the other) and
told of the report part: share of the metric above chance that the circuit alone keeps, free-running, all else at its
mean. At equal number of parts, and at equal number of neurons touched: those with a weight in a part that is kept.
Features read and write the whole MLP, so that they touch no countable neurons (NaN). The bar is neurons chosen by the
learned mask.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from isotrace.activations.harvest import activations
from isotrace.base.errors import IsotraceError
from isotrace.base.work import Memo, claimed
from isotrace.datasets.tasks import TaskData
from isotrace.dictionaries.architectures.snmf import USUAL, NeuronGroups
from isotrace.dictionaries.build import build, configure
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.discovery.tasks import mask
from isotrace.discovery.tasks.basis import Basis, Keep
from isotrace.discovery.tasks.choice import Half, halves, kept_there, on_halves
from isotrace.discovery.tasks.choice import chosen as chosen_sizes
from isotrace.discovery.tasks.ranking import rank
from isotrace.discovery.tasks.readout import BATCH_TOKENS, Readout, fit_readout
from isotrace.discovery.tasks.sweep import Anchors, Judge, Ranked, matched, pooled, top
from isotrace.interventions import Neurons
from isotrace.interventions.components import Values
from isotrace.interventions.writers import Writers
from isotrace.stats.bootstrap import interval
from isotrace.studies.study import Outcome, Setting, study
from isotrace.studies.task_circuits import TASKS, dictionary_for, task_data
from isotrace.subjects.subject import Subject, load_subject

METHODS = ("attribution_patching", mask.NAME)
BASES = ("neurons", "groups", "features", "mixed", "pca")
BAR = ("neurons", mask.NAME)
MASK_STEPS = 30  # of the learned mask in quick settings


@dataclass(frozen=True, eq=False)
class AtNeurons(Writers):
    """Parts that write vectors to the neurons of a layer, `vectors [parts, d_ff]` one a layer, from an `offset [d_ff]`:
    what is left of the neurons when `alone` is dropped."""

    name: ClassVar[str] = "part"
    layers: tuple[int, ...]
    vectors: Values
    offsets: Values
    replaces: bool = False  # pyright: ignore[reportIncompatibleVariableOverride]

    def sizes(self, subject: Subject) -> tuple[tuple[int, int], ...]:
        return tuple((len(vectors), 1) for vectors in self.vectors)

    def reads(self, subject: Subject) -> Sequence[str]:
        return [f"layers.{layer}.neuron" for layer in self.layers]

    writes = reads

    def rows(self, subject: Subject, layer: int, keep: Tensor | slice) -> Tensor:
        return self.vectors[layer][keep]

    def targets(self, layer: int) -> list[int]:
        return [layer]

    def finish(self, subject: Subject, layer: int, total: Tensor, x: Tensor) -> Tensor:
        return total + self.offsets[layer]

    def encode(self, layer: int, x: Tensor) -> Tensor:
        """By orthonormal vectors: principal components."""
        return (x - self.offsets[layer]) @ self.vectors[layer].T

    def alone(self, mean: Values, clean: Values | None = None) -> "AtNeurons":
        return replace(self, replaces=True)


@dataclass(frozen=True, eq=False, kw_only=True)
class Mixed(AtNeurons):
    """The groups of a dictionary and, behind them, what each neuron has besides: all of them are the neurons."""

    groups: Dictionary

    @classmethod
    def of(cls, groups: Dictionary) -> "Mixed":
        rows = [weight.detach() for weight in groups.W_dec]
        vectors = tuple(torch.cat([row, torch.eye(row.shape[1]).to(row)]) for row in rows)
        offsets = tuple(bias.detach() for bias in groups.b_dec)
        return cls(groups.config.layers, vectors, offsets, groups=groups)

    def encode(self, layer: int, x: Tensor) -> Tensor:
        a = self.groups.encode(layer, x).dense(self.groups.config.n_features)
        return torch.cat([a, x - a @ self.groups.W_dec[layer] - self.groups.b_dec[layer]], -1)


def neurons_of(subject: Subject, data: TaskData, n_tokens: int) -> Tensor:
    """Neurons `[layers, tokens, d_ff]` of every layer on the task's `fit` sequences, shortest first."""
    sites, found, count = [f"layers.{i}.neuron" for i in range(subject.n_layers)], [], 0
    batched = data.batches("fit", BATCH_TOKENS, subject)
    for _, batch in batched[:: max(1, len(batched) * BATCH_TOKENS // (2 * n_tokens))]:
        found.append(activations(subject, batch, sites))
        count += found[-1].shape[1]
        if count >= n_tokens:
            break
    return torch.cat(found, 1)[:, :n_tokens]


def grouped(subject: Subject, x: Tensor, n: int, seed: int, **options: Any) -> Dictionary:
    """Groups of the neurons `x` of every layer, all that were found in the best start: too few recur for a circuit."""
    given = USUAL | {"p": 0.05, "offset": "median", "consensus": False} | options
    made = build(configure(subject, "snmf", n_features=n, options=given), seed).to(subject.device).requires_grad_(False)
    assert isinstance(made, NeuronGroups)
    made.fit(x, seed)
    return made.eval()


def principal(subject: Subject, x: Tensor, n: int) -> AtNeurons:
    """The `n` principal components of every layer's neurons."""
    vectors = [torch.linalg.svd(part - part.mean(0), full_matrices=False)[2][:n] for part in x]
    return AtNeurons(tuple(range(subject.n_layers)), tuple(vectors), tuple(part.mean(0) for part in x))


def touched(basis: Basis, keep: Keep) -> float:
    """Neurons with a weight in one of the parts kept; NaN of parts that do not write to neurons."""
    parts, total = basis.components, 0
    if isinstance(parts, Neurons):
        return float(sum(map(len, keep)))
    for layer, kept in enumerate(keep):
        if isinstance(parts, AtNeurons):
            rows = parts.vectors[layer][kept]
        elif isinstance(parts, Features) and isinstance(parts.dictionary, NeuronGroups):
            rows = parts.dictionary.W_dec[layer][kept]
        else:
            return float("nan")
        total += int((rows != 0).any(0).sum()) if len(kept) else 0
    return float(total)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One basis ranked by one method; `judge` keeps what it measures apart from that of other bases."""

    name: str
    method: str
    ranked: Ranked
    judge: Judge
    scores: list[Tensor]

    def keep(self, n: int) -> Keep:
        return top(self.ranked.basis, self.ranked.scores, n)

    def share(self, n: int) -> np.ndarray:
        """Kept by the first n, `[1 + n_draws]`."""
        return self.ranked.anchors.kept(self.ranked.best(self.judge, n, "free_running"))

    def random(self, n: int, n_controls: int, seed: int) -> dict[str, Any]:
        rng, own = np.random.default_rng((seed, 6)), self.ranked
        drawn = [matched(self.keep(n), own.statistics, rng) for _ in range(n_controls)]
        shares = [own.anchors.kept(self.judge.circuit(own.basis, k, own.statistics, "free_running")) for k in drawn]
        return pooled(shares, seed)


def candidates(
    readout: Readout, data: TaskData, bases: dict[str, Basis], found: list[Half], setting: Setting, memo: Memo,
    n_bootstrap: int,
) -> Iterator[Candidate]:  # fmt: skip
    steps = MASK_STEPS if setting.quick else mask.STEPS
    jobs = [(name, method) for name in bases for method in METHODS]
    for name, method in setting.progress(jobs, "ranking every basis"):
        basis = bases[name]
        judge = Judge.of(readout, f"report {name}", data.parts["report"], n_bootstrap, setting.seed, memo)
        made = [batch for _, batch in data.batches("discover", BATCH_TOKENS, basis.subject)]
        statistics, subject = basis.statistics(made), judge.subject()
        empty = judge.circuit(basis, basis.split(torch.zeros(0, dtype=torch.long)), statistics, "free_running")
        anchors = Anchors(subject, empty, judge.chance, judge.noise(subject))

        def scored(of: TaskData, basis=basis, method=method, statistics=statistics, name=name) -> Tensor:
            ids = [e.index for e in of.parts["discover"]]
            first = lambda: rank(METHODS[0], basis, readout, of, statistics).numpy()  # noqa: E731
            start = torch.from_numpy(memo(repr(("scores", name, METHODS[0], ids)), first))
            if method == METHODS[0]:
                return start
            made = lambda: mask.learned(basis, readout, of, statistics, start, steps=steps).numpy()  # noqa: E731
            return torch.from_numpy(memo(repr(("scores", name, method, steps, ids)), made))

        ranked = Ranked(basis, statistics, scored(data), anchors)
        own = [replace(half, judge=replace(half.judge, name=f"{half.judge.name} {name}")) for half in found]
        yield Candidate(name, method, ranked, judge, [scored(half.data) for half in own])


def compared(
    task: str, every: list[Candidate], found: list[Half], sizes: Sequence[int], n_controls: int, seed: int
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """`circuits`: every basis, method and size, beside the bar at as many parts and at as many neurons; `chosen`: of
    the sizes chosen on the discovery part for 79 % and 90 %, beside size-matched random circuits and the bar's own."""
    bar = next(c for c in every if (c.name, c.method) == BAR)
    circuits, picked, own_bar = [], [], {}
    for one in (bar, *(c for c in every if c is not bar)):
        own = [min(n, one.ranked.basis.n) for n in sizes]
        of = [replace(half, judge=replace(half.judge, name=f"{half.judge.name} {one.name}")) for half in found]
        there = [kept_there(of, on_halves(n, of, one.ranked, one.scores)) for n in own]
        which = chosen_sizes(own, there)
        own_bar = which if one is bar else own_bar
        told = zip(own, there, strict=True)
        circuits += [_beside(task, one, bar, n) | {"kept_on_halves": halved} for n, halved in told]
        for level, n in which.items():
            row: dict[str, Any] = {"task": task, "basis": one.name, "method": one.method, "level": int(level), "n": n}
            row["n_bar"] = other = own_bar[level]
            share = None if n is None else one.share(n)
            row["touched"] = np.nan if n is None else touched(one.ranked.basis, one.keep(n))
            row |= _told("kept", share)
            row |= _told("minus_bar", None if share is None or other is None else share - bar.share(other))
            random = None if n is None else one.random(n, n_controls, seed)
            ends = random["ci"] if random else (np.nan,) * 2
            picked.append(row | {"random": random["mean"] if random else np.nan, "random_ci": ends})
    return {"chosen": picked, "circuits": circuits}


def _beside(task: str, one: Candidate, bar: Candidate, n: int) -> dict[str, Any]:
    share, neurons = one.share(n), touched(one.ranked.basis, one.keep(n))
    row = {"task": task, "basis": one.name, "method": one.method, "n": n, "touched": neurons, **_told("kept", share)}
    row |= _told("minus_bar_equal_parts", share - bar.share(min(n, bar.ranked.basis.n)))
    equal = None if np.isnan(neurons) else bar.share(max(1, int(neurons)))
    return row | _told("minus_bar_equal_neurons", None if equal is None else share - equal)


def _told(name: str, draws: np.ndarray | None) -> dict[str, Any]:
    nothing = (float("nan"),) * 2
    return {name: float("nan") if draws is None else float(draws[0]),
            f"{name}_ci": nothing if draws is None else interval(draws[1:])}  # fmt: skip


def verdict(chosen: list[dict[str, Any]]) -> str:
    """From the table `chosen`: which bases need separably fewer parts for what the bar keeps, or keep more."""
    said = []
    for task in dict.fromkeys(row["task"] for row in chosen):
        rows = [row for row in chosen if row["task"] == task and row["level"] == 90]
        bar = next(row for row in rows if (row["basis"], row["method"]) == BAR)
        better = [row for row in rows if row is not bar and row["n"] is not None and row["minus_bar_ci"][0] > 0]
        reached = [row for row in rows if row["n"] is not None]
        least = min(reached, key=lambda row: row["n"], default=None)
        names = ", ".join(f"{row['basis']} by {row['method']}" for row in better) or "nothing"
        small = "none reached 90 %" if least is None else (
            f"the smallest chosen is {least['n']} {least['basis']} by {least['method']}, which keep "
            f"{least['kept']:.2f} [{least['kept_ci'][0]:.2f}, {least['kept_ci'][1]:.2f}]"
        )  # fmt: skip
        own = "none" if bar["n"] is None else f"{bar['n']}, which keep {bar['kept']:.2f}"
        said.append(
            f"{task}: of the circuits chosen for 90 %, {names} keeps more than neurons by learned mask ({own}) with "
            f"an interval above zero; {small}."
        )
    return " ".join(said)


def question(name: str, setting: Setting) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Tables and notes of one task."""
    task, quick = TASKS[name], setting.quick
    subject = load_subject(task.subject)
    data = task_data(task, subject, setting)
    if quick:
        data = replace(data, parts=data.parts | {p: data.parts[p][::2] for p in ("discover", "report")})
    clt, note = dictionary_for(task, subject, data, setting)
    x = neurons_of(subject, data, 2_000 if quick else 6_000)
    fewer = {"restarts": 2, "seeds": 2, "iterations": 40} if quick else {}
    n = 50 if quick else 100
    groups = grouped(subject, x, n, setting.seed, **fewer)
    parts = (Neurons(), Features(groups), Features(clt), Mixed.of(groups), principal(subject, x, n))
    bases = {name: Basis(subject, part) for name, part in zip(BASES, parts, strict=True)}
    with claimed(setting.work / name) as work:
        memo = Memo(work, subject, clt, groups, data.kind, data.label, data.parts, quick)
        readout = fit_readout(subject, data, None, setting.seed)
        found = halves(readout, data, setting.seed, memo)[: 2 if quick else None]
        every = list(candidates(readout, data, bases, found, setting, memo, 200 if quick else 500))
        sizes = (2, 10, 50, 200) if quick else (1, 2, 5, 10, 20, 50, 100, 200, 500)
        tables = compared(name, every, found, sizes, 3 if quick else 20, setting.seed)
    return tables, [note] if note else []


@study("basis_question", "neurons, groups, features, both or PCA: which makes the best small circuits of real tasks")
def basis_question(setting: Setting) -> Outcome:
    names = ("esol",) if setting.quick else ("esol", "bace", "bbb", "paratope", "reaction_class")
    tables: dict[str, list[dict[str, Any]]] = {}
    notes: list[str] = []
    for name in names:
        try:
            found, said = question(name, setting)
        except IsotraceError as error:  # a task that cannot be asked must not take the others with it
            notes.append(f"{name}: not asked ({error})")
            continue
        notes += said
        for title, rows in found.items():
            tables[title] = tables.get(title, []) + rows
    said = verdict(tables["chosen"]) if tables else "No task could be asked."
    return Outcome(tables, (said, *notes))
