"""adapt_esol: what the ways to adapt `bundled:molm` reach on ESOL with 300 labels, beside a start from random weights.

The test part of the scaffold split (113 molecules) is the same throughout. Each seed draws its own 300 molecules from
the rest, of which about 45 stop the training; it also draws all that is random in training. Intervals are over
scaffolds and seeds.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from isotrace.annotation.nulls.sources import untrained_subject
from isotrace.base.progress import Progress
from isotrace.base.settings import child_seed
from isotrace.base.work import Memo, Work, claimed
from isotrace.datasets.inputs import rejects_frame
from isotrace.domains.domain import Domain, domain_of
from isotrace.stats.bootstrap import valued
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import Subject, load_subject
from isotrace.transfer.adapting.method import adapt
from isotrace.transfer.adapting.scoring import HeldOut, forest_outputs, gain
from isotrace.transfer.adapting.settings import AdaptSettings
from isotrace.transfer.adapting.tasks import TaskTable, read_tasks

LABEL = "measured_log_solubility_mol_per_l"
LABELS, SEEDS = 300, 5
FULL = AdaptSettings(steps=150, every=10)
QUICK = replace(FULL, steps=6, every=3)
METHODS = ("probe", "probe_all", "lora", "full", "scratch", "untrained", "forest")
CACHE = 1  # raised when code here or in transfer.adapting changes numbers


@study("adapt_esol", "ESOL with 300 labels, scaffold test: probe, adapters, all weights, and a start from random ones")
def adapt_esol(setting: Setting) -> Outcome:
    subject, settings = load_subject("bundled:molm"), QUICK if setting.quick else FULL
    domain = domain_of("molecule")
    seeds = [child_seed(setting.seed, i) if i else setting.seed for i in range(1 if setting.quick else SEEDS)]
    tables = [table_of(subject, domain, seed) for seed in seeds]
    part = HeldOut.of(tables[0], 2_000, setting.seed)
    with claimed(setting.work / f"adapt_esol{'_quick' if setting.quick else ''}", [subject, CACHE]) as work:
        memo = Memo(work, subject, CACHE, settings)
        outputs: dict[str, list[np.ndarray]] = {name: [] for name in METHODS}
        for name in METHODS:
            for seed, table in zip(seeds, tables, strict=True):
                own = partial(
                    outputs_of, name, subject, domain, table, replace(settings, seed=seed), work, setting.progress
                )
                outputs[name].append(memo(f"{name} {seed}", own))
    draws = {name: part.draws(found, who)[LABEL] for who, (name, found) in enumerate(outputs.items())}
    rows = [_row(name, own, draws, len(seeds)) for name, own in draws.items()]
    members = {name: len(tables[0].members(name)) for name in ("train", "valid", "test")}
    notes = [f"{members['train']} molecules to learn from, {members['valid']} to stop by, {members['test']} to judge"]
    notes += [f"at most {settings.steps} steps of {settings.batch}"]
    notes += ["quick settings train a few steps only: the numbers say nothing"] if setting.quick else []
    return Outcome({"esol": rows}, tuple(notes))


def table_of(subject: Subject, domain: Domain, seed: int) -> TaskTable:
    rows = bundled_table("esol").rename({"smiles": "sequence"}).with_row_index("index")
    rows = rows.with_columns(pl.col("index").cast(pl.Int64))
    return read_tasks(
        subject, domain, rows, rejects_frame([]), [LABEL], split="split_scaffold", limit=LABELS, seed=seed
    )


def outputs_of(
    name: str, subject: Subject, domain: Domain, table: TaskTable, settings: AdaptSettings, work: Work,
    progress: Progress,
) -> np.ndarray:  # fmt: skip
    """`[test rows, 1]`; a training that was stopped goes on."""
    if name == "forest":
        return forest_outputs(table, domain, settings.seed)
    whose = untrained_subject(subject, settings.seed) if name == "untrained" else subject
    method = "probe" if name == "untrained" else name
    found = adapt(whose, domain, table, method, settings, work=work, progress=progress)
    return found.readout.outputs(found.subject, [table.examples[i] for i in table.members("test")])


def _row(name: str, own: dict[str, np.ndarray], draws: dict[str, dict[str, np.ndarray]], n: int) -> dict[str, Any]:
    row: dict[str, Any] = {"method": name}
    for metric in ("r2", "rmse", "spearman"):
        found = valued(own[metric])
        row |= {metric: found["value"], f"{metric}_ci": found["ci"]}
    for other in ("scratch", "untrained", "forest"):
        found = gain(own["r2"], draws[other]["r2"], "r2")
        row |= {f"over_{other}": found["value"], f"over_{other}_ci": found["ci"]}
    return row | {"seeds": n}
