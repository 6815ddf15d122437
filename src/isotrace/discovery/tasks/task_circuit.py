"""The circuit behind a task, found on discovery sequences and proved on report sequences (METHODS §7).

1. readout    a probe fitted on `fit`, the subject's head or a given target; the task metric of the subject on `report`
2. rank       every feature, and every neuron, over `discover`
3. choose     how many of either keep 79 % and 90 %, on `discover` alone
4. sweep      the first n alone, all else at its mean: free-running and teacher-forced, beside matched random
              circuits and the first n neurons; curve, area, and the row of the size chosen
5. remove     the subject without the circuit, beside the same controls
6. describe   layers, parts, warnings
"""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.identity import identity
from isotrace.base.progress import Progress
from isotrace.base.settings import checked_seed
from isotrace.base.work import Memo, claimed
from isotrace.datasets.tasks import PARTS, TaskData, batches
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.discovery.illusion import feature_illusions
from isotrace.discovery.method import METHODS
from isotrace.discovery.tasks import ranking as rankings
from isotrace.discovery.tasks import readout as readouts
from isotrace.discovery.tasks import sweep as sweeps
from isotrace.discovery.tasks.basis import Basis, Keep, Statistics
from isotrace.discovery.tasks.choice import choose, halves
from isotrace.discovery.tasks.ranking import RANKINGS, check_ranking, rank
from isotrace.discovery.tasks.readout import BATCH_TOKENS, Readout, checked_metric, fit_readout, target_readout
from isotrace.discovery.tasks.summary import CURVES, area, in_hindsight, warnings
from isotrace.discovery.tasks.sweep import Anchors, Judge, Proof, Ranked, per_layer, sizes_on_grid, top
from isotrace.interventions import Attentions, Components, Heads, MLPs, Neurons
from isotrace.interventions.writers import Writers
from isotrace.stats.bootstrap import interval
from isotrace.subjects.heads.pooled import is_pooled
from isotrace.subjects.subject import Subject

ROLES = ("features", "neurons")
ILLUSIONS, ILLUSION_SEQUENCES = 30, 200  # parts that are checked, and the discovery sequences it is done on
PLAIN: dict[str, type[Components]] = {kind.name: kind for kind in (Neurons, Heads, Attentions, MLPs)}


@dataclass(frozen=True)
class TaskConfig:
    """Settings of a task circuit; every one is written to the manifest.

    mediator: what the circuit is made of, `feature` or one of PLAIN. ranking: see `ranking.RANKINGS`; of other
    mediators than features any method that ranks nodes. sizes: circuits to measure; None = 1, 2 and 5 per decade of
    the share of all features. metric: None = the kind's first, see `readout.ALLOWED`. n_controls: random circuits
    per size. target: what is read instead of a probe fitted here, see `readout.target_readout`.
    """

    mediator: str = "feature"
    ranking: str = "attribution_patching"
    sizes: tuple[int, ...] | None = None
    metric: str | None = None
    n_controls: int = 20
    n_bootstrap: int = 500
    seed: int = 0
    target: str | None = None

    def __post_init__(self) -> None:
        checked_seed(self.seed)


@dataclass(frozen=True, eq=False)
class TaskCircuit:
    """`summary` is what `--json` prints; `features` and `neurons` the rankings behind it."""

    data: TaskData
    readout: Readout
    features: Ranked
    neurons: Ranked
    summary: dict[str, Any]
    config: TaskConfig

    def parts(self, n: int) -> pl.DataFrame:
        """The first `n` features: layer, feature, score, density, mean activation."""
        basis, statistics = self.features.basis, self.features.statistics
        rows = [
            (layer, int(i), statistics.density[layer][i].item(), _size(statistics.mean[layer][i]))
            for layer, kept in enumerate(top(basis, self.features.scores, n))
            for i in kept
        ]
        schema = {"layer": pl.Int64, "feature": pl.Int64, "density": pl.Float64, "mean_activation": pl.Float64}
        starts = np.concatenate([[0], np.cumsum(basis.sizes)])
        table = pl.DataFrame(rows, schema=schema, orient="row")
        scores = [self.features.scores[int(starts[layer]) + i].item() for layer, i, *_ in rows]
        return table.with_columns(score=pl.Series(scores, dtype=pl.Float64)).sort("score", descending=True)

    def layer_numbers(self) -> tuple[int, ...]:
        """The subject's number of every layer of the circuit's parts."""
        return _layer_numbers(self.features.basis)

    def keep(self) -> Keep:
        """The circuit that the summary removes, and whose parts are listed: see `necessity`."""
        return top(self.features.basis, self.features.scores, self.summary["necessity"]["n"])


def _layer_numbers(basis: Basis) -> tuple[int, ...]:
    parts = basis.components
    return parts.dictionary.config.layers if isinstance(parts, Features) else tuple(range(len(basis.sizes)))


def _size(mean: Tensor) -> float:
    """A mean activation as one number: of a vector its length."""
    return float(mean) if mean.dim() == 0 else float(mean.norm())


def find_circuit(
    subject: Subject, dictionary: Dictionary, data: TaskData, config: TaskConfig, *, work: Path | None = None,
    progress: Progress = lambda items, _: items,
) -> TaskCircuit:  # fmt: skip
    """`work`: a folder where what was measured is kept, so that a killed run goes on. Raises InputError for more
    features than there are and for a subject no better than chance on the report part, RunError as `claimed`. Where the
    subject's interval reaches down to chance, shares are NaN and nothing is `chosen`."""
    subject.require_float32("a circuit")
    ready = None if config.target is None else target_readout(subject, data, config.metric, config.target)
    subject = subject if ready is None else ready.subject
    bases = (_parts(subject, dictionary, config), Basis(subject, Neurons(dictionary.config.layers)))
    sizes = sizes_on_grid(bases[0].n, config.sizes)
    check_ranking(config.ranking, bases[0], final=not subject.reads)
    if sizes[0] < 1:
        raise InputError(f"a circuit of {sizes[0]} parts was asked for: it needs one at least.")
    if sizes[-1] > bases[0].n:
        raise InputError(f"a circuit of {sizes[-1]} features was asked for, and there are {bases[0].n}: ask for less.")
    with nullcontext() if work is None else claimed(work) as folder:
        memo = Memo(folder, subject, dictionary, data.kind, data.label, data.parts, _steps(config, ready))
        readout = _stored_readout(subject, data, config, memo) if ready is None else ready
        return _found(readout, dictionary, data, config, bases, sizes, memo, progress)


def _found(
    readout: Readout, dictionary: Dictionary, data: TaskData, config: TaskConfig, bases: tuple[Basis, Basis],
    sizes: list[int], memo: Memo, progress: Progress,
) -> TaskCircuit:  # fmt: skip
    judge = Judge.of(readout, "report", data.parts["report"], config.n_bootstrap, config.seed, memo)
    whole, chance = judge.subject(), judge.chance
    if not whole[0] > chance:
        raise InputError(
            f"the subject's {readout.metric} on the report part is {whole[0]:.3g}, no better than chance "
            f"({chance:.3g}): there is nothing a circuit could keep."
        )
    rankers = [_Ranker(role, basis, readout, config, memo, progress) for role, basis in zip(ROLES, bases, strict=True)]
    # Of a subject that is at chance in some draws no share is printed: all of it would be noise.
    above = interval(whole[1:])[0] > chance
    noise = judge.noise(whole) if above else np.inf
    features, neurons = (ranker.ranked(data, judge, whole, noise) for ranker in rankers)
    halved = halves(readout, data, config.seed, memo)
    scores = [
        [ranker.scores(half.data, of.statistics, f" on {half.judge.name}") for half in halved]
        for ranker, of in zip(rankers, (features, neurons), strict=True)
    ]
    choice = choose(
        sizes, halved, dict(zip(ROLES, zip((features, neurons), scores, strict=True), strict=True)), progress
    )
    proof = Proof(judge, features, neurons, config.n_controls, config.seed)
    entries = [proof.entry(n) for n in progress(sizes, "circuits of rising size")]
    reference = choice["features"]["79"]
    if reference is None or 2 * reference > bases[0].n:  # no circuit worth the name: what one percent does is told
        reference = max((n for n in sizes if n <= max(1, bases[0].n // 100)), default=sizes[0])
    numbers = _layer_numbers(bases[0])
    summary = {
        "task": {
            "kind": data.kind, "label": data.label, "classes": list(data.classes),
            **{f"n_{part}": len(data.parts[part]) for part in PARTS},
            "n_groups": len({e.group for part in PARTS for e in data.parts[part]}),
            "n_report_groups": len({e.group for e in data.parts["report"]}),
            "n_rejected": data.rejects.height,
        },
        "task_metric": {
            "name": readout.metric, "subject": whole[0], "subject_ci": interval(whole[1:]), "chance": chance,
        },
        "parts_of": identity([config.mediator, dictionary if config.mediator == "feature" else readout.subject]),
        "mediator": config.mediator, "n_features": bases[0].n, "n_neurons": bases[1].n, "ranking": config.ranking,
        "empty": features.anchors.summary(features.anchors.empty),
        "sweep": entries,
        "area": {name: area(entries, get) for name, get in CURVES.items()},
        "choice": choice,
        "chosen": {level: proof.chosen(level, choice, entries) if above else None for level in choice["features"]},
        "in_hindsight": in_hindsight(sizes, entries),
        "necessity": proof.necessity(reference),
        "unsigned": proof.unsigned(reference),
        "layers": per_layer(top(features.basis, features.scores, reference), features.basis, numbers),
    }  # fmt: skip
    if isinstance(bases[0].components, Writers):
        keep = top(bases[0], features.scores, min(reference, ILLUSIONS))
        rows = _illusions(bases[0], data, keep, config)
        summary["illusion"] = [row | {"layer": numbers[row["layer"]]} for row in rows]
    summary["warnings"] = [*filter(None, [readout.caveat]), *warnings(summary)]
    return TaskCircuit(data, readout, features, neurons, summary, config)


def _illusions(basis: Basis, data: TaskData, keep: Keep, config: TaskConfig) -> list[dict[str, Any]]:
    examples = data.parts["discover"]
    examples = examples[:: -(-len(examples) // ILLUSION_SEQUENCES)]
    made = batches(examples, BATCH_TOKENS, basis.subject)
    groups = [e.group for e in examples]
    return feature_illusions(
        basis, keep, [batch for _, batch in made], groups=groups, n_bootstrap=config.n_bootstrap, seed=config.seed
    )


def _parts(subject: Subject, dictionary: Dictionary, config: TaskConfig) -> Basis:
    """Raises InputError for a mediator that has no components a task circuit could keep."""
    if config.mediator == "feature":
        if is_pooled(dictionary.config.reads):
            raise InputError(
                f"features of {dictionary.config.hookpoint_in} stand for whole sequences, and circuits are of tokens: "
                "train a dictionary at another hookpoint."
            )
        return Basis(subject, Features(dictionary))
    if config.mediator not in PLAIN:
        raise InputError(f"no mediator {config.mediator!r} for a task: give feature, {', '.join(PLAIN)}.")
    return Basis(subject, PLAIN[config.mediator]())


def _steps(config: TaskConfig, ready: Readout | None) -> list[Any]:
    """Settings that what a memo holds depends on, and the `CACHE` numbers of the code."""
    caches = [readouts.CACHE, rankings.CACHE, sweeps.CACHE, config.ranking in METHODS and METHODS[config.ranking].cache]
    steps = [config.mediator, config.ranking, config.metric, config.seed, caches]
    return steps if ready is None or ready.target is None else [*steps, config.target, ready.target.probe]


def _stored_readout(subject: Subject, data: TaskData, config: TaskConfig, memo: Memo) -> Readout:
    """Fitted, or as an earlier run fitted it."""
    made: list[Readout] = []

    def fit() -> np.ndarray:
        made.append(fit_readout(subject, data, config.metric, config.seed))
        found = made[0]
        if found.weight is None or found.bias is None:
            return np.zeros((0, 0))
        return torch.cat([found.weight, found.bias[None]]).numpy()

    stored = memo("readout", fit)
    if made or not stored.size:
        return made[0] if made else fit_readout(subject, data, config.metric, config.seed)
    table = torch.from_numpy(stored)
    return Readout(subject, data.kind, checked_metric(data, config.metric), table[:-1], table[-1])


@dataclass(frozen=True, eq=False)
class _Ranker:
    """Ranks the parts of a basis, and remembers; `role`, one of ROLES, tells bases apart."""

    role: str
    basis: Basis
    readout: Readout
    config: TaskConfig
    memo: Memo
    progress: Progress

    def scores(self, data: TaskData, found: Statistics, where: str = "") -> Tensor:
        # the neurons beside other mediators are ranked by the usual method where they have no such one
        ranking, basis = self.config.ranking, self.basis
        ranking = ranking if not isinstance(basis.components, Writers) or ranking in RANKINGS else RANKINGS[0]
        shown = lambda items: self.progress(items, f"ranking {self.role}{where}")  # noqa: E731
        made = lambda: rank(ranking, basis, self.readout, data, found, shown).numpy()  # noqa: E731
        return torch.from_numpy(self.memo(f"scores {self.role}{where}", made))

    def ranked(self, data: TaskData, judge: Judge, whole: np.ndarray, noise: float) -> Ranked:
        made: list[Statistics] = []

        def measured(which: str) -> np.ndarray:
            if not made:
                batched = data.batches("discover", BATCH_TOKENS, self.basis.subject)
                made.append(self.basis.statistics(batch for _, batch in batched))
            return torch.cat(getattr(made[0], which)).cpu().numpy()

        mean, density = (
            torch.from_numpy(self.memo(f"{which} {self.role}", partial(measured, which))).split(self.basis.sizes)
            for which in ("mean", "density")
        )
        found = Statistics(tuple(part.to(self.basis.subject.device) for part in mean), tuple(density))
        empty = judge.circuit(self.basis, self.basis.split(torch.zeros(0, dtype=torch.long)), found, "free_running")
        return Ranked(self.basis, found, self.scores(data, found), Anchors(whole, empty, judge.chance, noise))
