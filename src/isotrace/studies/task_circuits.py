"""Task circuits on real data: one study per task, see `TASKS`.

Subjects whose dictionary is not bundled need one, `--dictionary SUBJECT=FOLDER` (docs/atlases say how the published
ones were trained). Without it a small transcoder is trained on the task's own `fit` and `discover` sequences first:
enough to see the method at work, not to judge the features.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import polars as pl
import torch

from isotrace.activations.harvest import Corpus
from isotrace.base.errors import SubjectError
from isotrace.datasets.tasks import Kind, TaskData, prepare
from isotrace.dictionaries.build import configure
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary
from isotrace.discovery.tasks.task_circuit import TaskConfig, find_circuit
from isotrace.domains.domain import domain_of
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import Subject, load_subject
from isotrace.training.config import TrainingConfig
from isotrace.training.loop import train_dictionary

ANTIBERTY = "pypi:antiberty/AntiBERTy_md_smooth"
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.1, 1.0)
QUICK_SHARES = (0.001, 0.005, 0.01, 0.1, 1.0)
TRAINING_TOKENS = 150_000


@dataclass(frozen=True)
class RealTask:
    """`table`: of `bundled_table`. `limits`: sequences to discover and to report on, quick and full. `least`: sequences
    a class needs, rarer ones are left out. `quick_controls`: random circuits per size in quick settings."""

    subject: str
    dictionary: str | None
    table: str
    column: str
    label: str
    split: str | None
    kind: Kind
    limits: tuple[int, int | None]
    quick_controls: int = 20
    least: int = 0


MOLM = ("bundled:molm", "bundled:molm-clt")
TASKS = {
    "bbb": RealTask(*MOLM, "bbb", "smiles", "bbb", "split_scaffold", "class", (200, 400)),
    "bace": RealTask(*MOLM, "bace", "smiles", "Class", "split_scaffold", "class", (200, 400)),
    "esol": RealTask(
        *MOLM, "esol", "smiles", "measured_log_solubility_mol_per_l", "split_scaffold",
        "regression", (200, 400),
    ),
    "reaction_class": RealTask(
        "pypi:rxnfp/bert_pretrained", None, "reactions", "reaction", "rx_class", None, "class", (100, 200), 10
    ),
    "v_gene": RealTask(ANTIBERTY, None, "antibodies", "sequence", "v_family", None, "class", (80, 120), 10, 30),
    "paratope": RealTask(ANTIBERTY, None, "antibodies", "sequence", "paratope", None, "residue", (50, 80), 10),
}  # fmt: skip


def table_of(task: RealTask) -> pl.DataFrame:
    """Columns index, sequence, and those of the task."""
    table = bundled_table(task.table).rename({task.column: "sequence"})
    if task.label == "v_family":
        # the family is what stands before the number of the gene: IGHV3-23 is of IGHV3
        table = table.with_columns(pl.col("v_gene").str.extract(r"^(IG[HKL]V\d+)").alias("v_family"))
    if task.least:
        common = table[task.label].value_counts().filter(pl.col("count") >= task.least)[task.label]
        table = table.filter(pl.col(task.label).is_in(common.implode()))
    return table.with_row_index("index")


def task_data(task: RealTask, subject: Subject, setting: Setting) -> TaskData:
    assert subject.files.domain is not None
    return prepare(
        subject, domain_of(subject.files.domain), table_of(task), label=task.label, kind=task.kind, split=task.split,
        group=None, mutations=None, seed=setting.seed, limit=task.limits[0 if setting.quick else 1],
        progress=lambda items: setting.progress(items, "reading"),
    )  # fmt: skip


def dictionary_for(task: RealTask, subject: Subject, data: TaskData, setting: Setting) -> tuple[Dictionary, str | None]:
    """(dictionary, note where it was trained here)."""
    named = setting.dictionaries.get(task.subject, task.dictionary)
    if named is not None:
        return load_dictionary(named, subject), None
    if not setting.quick:
        raise SubjectError(f"{task.subject} has no bundled dictionary: give --dictionary {task.subject}=FOLDER.")
    folder = setting.work / "dictionary"
    if not (folder / "dictionary.json").is_file():
        texts = [e.text for part in ("fit", "discover") for e in data.parts[part]]
        config = configure(subject, "transcoder", n_features=2 * subject.d_model, k=32)
        training = TrainingConfig(tokens=TRAINING_TOKENS, learning_rate=1.6e-3, dead_after=50_000)
        corpus = Corpus.of(subject, texts)
        made = train_dictionary(subject, corpus, config, training, setting.work / "checkpoint.pt")
        save_dictionary(made, folder, reference(subject), dtype=torch.float32, training={})
    note = (
        f"the dictionary is a small transcoder, trained here on {TRAINING_TOKENS:,} tokens of the task's own fit and "
        "discover sequences: give --dictionary for a real one"
    )
    return load_dictionary(folder, subject), note


def run(name: str, setting: Setting) -> Outcome:
    task = TASKS[name]
    subject = load_subject(task.subject)
    data = task_data(task, subject, setting)
    dictionary, note = dictionary_for(task, subject, data, setting)
    n = dictionary.config.n_features * dictionary.config.n_layers
    shares = QUICK_SHARES if setting.quick else SHARES
    config = TaskConfig(
        sizes=tuple(sorted({max(1, round(n * share)) for share in shares})),
        n_controls=task.quick_controls if setting.quick else 20,
        seed=setting.seed,
    )
    found = find_circuit(subject, dictionary, data, config, work=setting.work / "circuit", progress=setting.progress)
    return Outcome(tables(name, found.summary), (*([note] if note else []), *found.summary["warnings"]))


def tables(name: str, summary: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """`circuits`: one row per size; `chosen`: the rows of the sizes chosen on the discovery part; `task`: one row of
    what holds for all sizes."""
    chosen = [
        {**_row(name, entry), "level": level, **_beside(entry["neurons_chosen"])}
        for level, entry in summary["chosen"].items()
        if entry is not None
    ]
    metric, fall, choice = summary["task_metric"], summary["necessity"], summary["choice"]
    about = {
        "task": name, "metric": metric["name"], "subject": metric["subject"], "subject_ci": metric["subject_ci"],
        "chance": metric["chance"], "n_features": summary["n_features"], "empty": summary["empty"]["sufficiency"],
        "n_report": summary["task"]["n_report"], "n_groups": summary["task"]["n_groups"],
        **{f"chosen_{level}": n for level, n in choice["features"].items()},
        **{f"chosen_{level}_neurons": n for level, n in choice["neurons"].items()},
        **{f"in_hindsight_{level}": n for level, n in summary["in_hindsight"]["features"].items()},
        **{f"area_{name}": area for name, area in summary["area"].items()},
        "necessity_n": fall["n"], "necessity": fall["fall"], "necessity_ci": fall["ci"],
        "necessity_random": fall["random"]["mean"], "necessity_random_ci": fall["random"]["ci"],
        "necessity_neurons": fall["neurons"]["fall"], "necessity_neurons_ci": fall["neurons"]["ci"],
    }  # fmt: skip
    choosing = [{"task": name, **row} for row in choice["sweep"]]
    found = {"circuits": [_row(name, e) for e in summary["sweep"]], "choosing": choosing, "chosen": chosen}
    return {title: rows for title, rows in found.items() if rows} | {"task": [about]}


def _row(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    row = {"task": name, "n": entry["n"], "fraction": entry["fraction"]}
    for key, field in (("free_running", "sufficiency"), ("random", "mean"), ("neurons", "sufficiency"),
                       ("teacher_forced", "sufficiency")):  # fmt: skip
        row |= {key: entry[key][field], f"{key}_ci": entry[key]["ci"]}
    row |= {"features_minus_neurons": entry["neurons"]["difference"]}
    row |= {"features_minus_neurons_ci": entry["neurons"]["difference_ci"]}
    return row | {"faithfulness": entry["free_running"]["faithfulness"]}


def _beside(neurons: dict[str, Any] | None) -> dict[str, Any]:
    """The neurons that the same rule chooses, and what the features keep more than they do."""
    keys = {"n": "n", "kept": "sufficiency", "ci": "ci", "difference": "difference", "difference_ci": "difference_ci"}
    return {f"neurons_chosen_{key}": neurons[of] if neurons else None for key, of in keys.items()}


for _name, _task in TASKS.items():
    _where = "held out by scaffold or cluster, with every control"
    study(f"circuit_{_name}", f"the circuit of {_task.label} in {_task.subject}, {_where}")(partial(run, _name))
