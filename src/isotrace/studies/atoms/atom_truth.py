"""Are these the right atoms? Scores of atoms against truths that are known.

- `crippen`: the label is RDKit's computed logP, a sum over atoms: the right picture is its terms, by construction
- `lipophilicity`: measured logD; its terms are not known, the computed ones of logP stand in for them. `maxima`: the
  same, read by the means and the maxima over the tokens
- `rules`: labels planted by substructure, see `rules.RULES`
- `pairs`: two molecules that differ by one substituent: does the picture of the difference lie on what changed, and do
  its numbers there add up to the difference that the model makes

A readout counts where it knows its label: AUROC of 0.98 on molecules it has not seen; the numbers' R² is told.
"""

import json
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import numpy as np
import polars as pl
from rdkit import Chem
from rdkit.Chem import Crippen

from isotrace.base.errors import InputError
from isotrace.base.files import write_whole
from isotrace.base.settings import child_seed
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.saving import load_dictionary
from isotrace.domains.molecule import parse
from isotrace.domains.molecule.spelling import Spelling, spellings
from isotrace.stats.bootstrap import bootstrap_weights, interval, mean_interval
from isotrace.stats.metrics import auroc, spearman
from isotrace.studies.atoms.pairs import Half, matched_pairs
from isotrace.studies.atoms.rules import RULES
from isotrace.studies.atoms.scores import CHEAP, METHODS, atom_scores, case_of
from isotrace.studies.atoms.tasks import Pool, Sizes, Task, number_task, one, read_pool, rule_task
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import Subject, load_subject
from isotrace.subjects.targets import Target

Row = dict[str, Any]
Scores = dict[str, np.ndarray]
SOURCE = ("bundled:molm", "bundled:molm-clt")
KNOWN = 0.98
"""AUROC from which on a readout is taken to know a rule."""
QUICK = Sizes(pool=600, measured=400, cell=200, molecules=4, pairs=2, spellings=1, rules=1)
FULL = Sizes(pool=9_000, measured=4_000, cell=900, molecules=12, pairs=12, spellings=2, rules=len(RULES))


class Explained:
    """Scores of atoms of molecules for one target, kept between runs."""

    def __init__(self, subject: Subject, dictionary: Dictionary, setting: Setting) -> None:
        self.subject, self.dictionary, self.setting = subject, dictionary, setting

    def of(self, task: str, target: Target, text: str, others: int) -> list[tuple[float, Scores]]:
        """(value of the target, scores by method) of the text as it is and of `others` spellings of the molecule."""
        seed = child_seed(self.setting.seed, crc32(text.encode()))
        mol: Chem.Mol = parse(text)
        assert target.probe is not None
        key = crc32(target.probe.weight.numpy().tobytes())
        file = self.setting.work / "scores" / f"{task}-{key}" / f"{seed}-{others}.json"
        if file.is_file():
            rows = json.loads(file.read_text())
            return [(value, {name: np.asarray(v) for name, v in found.items()}) for value, found in rows]
        own = Spelling(text, tuple(range(mol.GetNumAtoms())))
        found = []
        for spelling in (own, *spellings(mol, others, seed)):
            try:
                case = case_of(self.subject, self.dictionary, target, spelling.smiles, seed)
            except InputError:  # this spelling has tokens that the subject does not know
                continue
            methods = METHODS if spelling is own else CHEAP
            found.append((float(case.values(case.batch.ids)[0]), atom_scores(case, spelling, methods)))
        rows = [(value, {name: v.tolist() for name, v in scores.items()}) for value, scores in found]
        write_whole(file, json.dumps(rows).encode())
        return found


def averaged(found: Sequence[tuple[float, Scores]]) -> Scores:
    return {name: np.mean([scores[name] for _, scores in found], 0) for name in CHEAP}


def score_rows(task: Task, pool: Pool, explained: Explained, sizes: Sizes) -> tuple[list[Row], list[Row]]:
    """(one row per method and number of spellings, one row per molecule on the spread over spellings)."""
    seed = explained.setting.seed
    judged: dict[tuple[str, int], list[dict[str, float]]] = {}
    spreads = []
    for row in explained.setting.progress(task.rows, f"explaining {task.name}"):
        found = explained.of(task.name, task.readout.target, pool.texts[row], sizes.spellings)
        for n, scores in ((1, found[0][1]), (1 + sizes.spellings, averaged(found))):
            for name in scores:
                judged.setdefault((name, n), []).append(task.judge(row, scores[name]))
        for name, scores in task.forest.atom_scores(pool.mol(row)).items():
            judged.setdefault((name, 1), []).append(task.judge(row, scores))
        values = [value for value, _ in found]
        spreads.append({
            "task": task.name, "smiles": pool.texts[row], "value": values[0], "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
        })  # fmt: skip
    rows = []
    for (name, n), numbers in judged.items():
        line: Row = {"task": task.name, "metric": task.metric, "method": name, "spellings": n, "n": len(numbers)}
        for key in ("signed", "size", "decoy"):
            values = np.asarray([v[key] for v in numbers if key in v and np.isfinite(v[key])])
            mean = float(values.mean()) if len(values) else float("nan")
            line |= {key: mean, f"{key}_ci": mean_interval(values, seed)}
        rows.append(line)
    return rows, spreads


def pair_rows(task: Task, pool: Pool, explained: Explained, sizes: Sizes) -> list[Row]:
    """Per method: AUROC of the difference of the scores, for the atoms that changed, and over all pairs the Spearman
    correlation of what the changed atoms say with the difference of the model's values."""
    seed = explained.setting.seed
    tested = np.nonzero(pool.part > 0)[0]
    pairs = matched_pairs([pool.mols[i] for i in tested.tolist()], sizes.pairs, seed)
    moved, told, placed = [], {name: [] for name in METHODS}, {name: [] for name in METHODS}

    def read(half: Half) -> tuple[float, Scores]:
        return explained.of(task.name, task.readout.target, pool.texts[tested[half.row]], 0)[0]

    for pair in explained.setting.progress(pairs, "explaining pairs"):
        (value, a), (other, b) = read(pair.first), read(pair.second)
        moved.append(value - other)
        same, other_atoms = len(pair.first.core), len(pair.first.changed + pair.second.changed)
        changed = np.arange(same + other_atoms) >= same
        for name in METHODS:
            one_side, other_side = a[name][list(pair.first.changed)], b[name][list(pair.second.changed)]
            core = a[name][list(pair.first.core)] - b[name][list(pair.second.core)]
            told[name].append(one_side.sum() - other_side.sum())
            placed[name].append(one(auroc, np.abs(np.concatenate([core, one_side, other_side])), changed))
    weights = np.concatenate([np.ones((1, len(pairs))), bootstrap_weights(len(pairs), 1_000, seed)])
    rows = []
    for name in METHODS:
        draws = spearman(np.asarray(told[name])[:, None], np.asarray(moved), weights)
        places = np.asarray(placed[name])
        rows.append({
            "task": task.name, "method": name, "n": len(pairs), "changed_auroc": float(places.mean()),
            "changed_auroc_ci": mean_interval(places, seed), "difference_spearman": float(draws[0]),
            "difference_spearman_ci": interval(draws[1:]),
        })  # fmt: skip
    return rows


def read_row(task: Task, seed: int) -> Row:
    found = task.readout
    return {
        "task": task.name, "about": found.target.description, "metric": found.metric, "worth": found.worth,
        "worth_ci": found.worth_ci, "scored": found.metric != "AUROC" or found.worth >= KNOWN,
        "n_train": found.n_train, "n_test": len(found.values), "explained": len(task.rows),
    }  # fmt: skip


def tasks_of(subject: Subject, sizes: Sizes, setting: Setting) -> list[tuple[Task, Pool]]:
    tables = [bundled_table(name).select("smiles", "split_scaffold") for name in ("bbb", "esol", "bace")]
    pool = read_pool(subject, pl.concat(tables), None, sizes.pool, setting)
    computed = np.asarray([Crippen.MolLogP(mol) for mol in pool.mols])  # pyright: ignore[reportAttributeAccessIssue]
    found = [(number_task(subject, "crippen", "RDKit's logP", "log units", computed, pool, sizes, setting), pool)]
    measured = bundled_table("lipophilicity")
    other = read_pool(subject, measured, "logD", sizes.measured, setting)
    about = ("lipophilicity", "measured logD, MoleculeNet", "log units")
    found.append((number_task(subject, *about, other.label, other, sizes, setting), other))
    other = read_pool(subject, measured, "logD", sizes.measured, setting, "mean+max")
    about = ("maxima", "measured logD, read by maxima over the tokens too", "log units")
    found.append((number_task(subject, *about, other.label, other, sizes, setting), other))
    return found + [(rule_task(subject, rule, pool, sizes, setting), pool) for rule in RULES[: sizes.rules]]


def compared(sizes: Sizes, setting: Setting) -> Outcome:
    """The study at any size."""
    subject = load_subject(SOURCE[0])
    explained = Explained(subject, load_dictionary(SOURCE[1], subject), setting)
    tables: dict[str, list[Row]] = {"readouts": [], "scores": [], "pairs": [], "spellings": []}
    notes = []
    for task, pool in tasks_of(subject, sizes, setting):
        row = read_row(task, setting.seed)
        tables["readouts"].append(row)
        if not row["scored"]:
            short = f"AUROC {row['worth']:.3f} on unseen molecules, below {KNOWN}"
            notes.append(f"{task.name} ({row['about']}) is not scored: {short}.")
            continue
        rows, spreads = score_rows(task, pool, explained, sizes)
        tables["scores"] += rows
        tables["spellings"] += spreads
        if row["metric"] != "AUROC":
            tables["pairs"] += pair_rows(task, pool, explained, sizes)
    return Outcome(tables, tuple(notes))


@study("atom_truth", "which scores of atoms find the atoms that are known to decide a label")
def atom_truth(setting: Setting) -> Outcome:
    return compared(QUICK if setting.quick else FULL, setting)
