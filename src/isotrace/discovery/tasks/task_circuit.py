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
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

from isotrace.base.errors import InputError
from isotrace.base.identity import identity
from isotrace.base.progress import Progress
from isotrace.base.work import claimed
from isotrace.datasets.tasks import PARTS, TaskData, batches
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.features import Features
from isotrace.discovery.illusion import feature_illusions
from isotrace.discovery.tasks.basis import Basis, Keep
from isotrace.discovery.tasks.choice import choose
from isotrace.discovery.tasks.finding import ROLES, Finding, TaskConfig
from isotrace.discovery.tasks.readout import BATCH_TOKENS, Readout
from isotrace.discovery.tasks.summary import CURVES, area, in_hindsight, warnings
from isotrace.discovery.tasks.sweep import Ranked, per_layer, top
from isotrace.engine.spread import Helpers
from isotrace.interventions.writers import Writers
from isotrace.stats.bootstrap import interval
from isotrace.subjects.subject import Subject

ILLUSIONS, ILLUSION_SEQUENCES = 30, 200  # parts that are checked, and the discovery sequences it is done on


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
    helpers: Helpers | None = None, progress: Progress = lambda items, _: items,
) -> TaskCircuit:  # fmt: skip
    """`work`: a folder where what was measured is kept, so that a killed run goes on; `helpers`: others who measure
    parts of it there, see `Finding.do`. Raises InputError for more features than there are and for a subject no better
    than chance on the report part, RunError as `claimed`. Where the subject's interval reaches down to chance, shares
    are NaN and nothing is `chosen`."""
    with nullcontext() if work is None else claimed(work) as folder:
        return _found(Finding.of(subject, dictionary, data, config, folder, progress), helpers)


def _found(find: Finding, helpers: Helpers | None) -> TaskCircuit:
    data, config, readout, bases, sizes = find.data, find.config, find.readout, find.bases, find.sizes
    whole, chance, progress = find.whole, find.judge.chance, find.progress
    if not whole[0] > chance:
        raise InputError(
            f"the subject's {readout.metric} on the report part is {whole[0]:.3g}, no better than chance "
            f"({chance:.3g}): there is nothing a circuit could keep."
        )
    above = find.above
    if helpers is not None:
        helpers.do(find.first(), "rankings")
        helpers.do(find.second(), "circuits")
    (features, _), (neurons, _) = find.ranked
    choice, proof = choose(sizes, find.halved, dict(zip(ROLES, find.ranked, strict=True)), progress), find.proof
    entries = [proof.entry(n) for n in progress(sizes, "circuits of rising size")]
    reference = choice["features"]["79"]
    if reference is None or 2 * reference > bases[0].n:  # no circuit worth the name: what one percent does is told
        reference = max((n for n in sizes if n <= max(1, bases[0].n // 100)), default=sizes[0])
    if helpers is not None:
        helpers.do(find.controls("removed", reference), "circuits taken away")
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
        "parts_of": identity([config.mediator, find.dictionary if config.mediator == "feature" else readout.subject]),
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
