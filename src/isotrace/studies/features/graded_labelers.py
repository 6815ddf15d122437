"""Graded labelers: functions of tokens whose definition is known, named by whoever names features, and graded exactly.

The functions are drawn on molecules of the bundled tables, see `isotrace.annotation.benchmark`. Beside the labeler of
`isotrace annotate` stand the best concept without its tests, token identity, both misled by shuffled activations, and
both with their predictions shuffled.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
from rdkit import Chem
from rdkit.Chem import Crippen, rdPartialCharges

from isotrace.annotation.benchmark.bench import Bench, bench, compare
from isotrace.annotation.benchmark.functions import CORRUPTED
from isotrace.annotation.benchmark.ground import Ground
from isotrace.annotation.benchmark.labelers import Builtin, Labeler, best_concept, misled, token_identity
from isotrace.base.progress import Progress
from isotrace.datasets.annotated import prepare
from isotrace.domains.domain import Reading, domain_of
from isotrace.studies.study import Outcome, Setting, bundled_table, study
from isotrace.subjects.subject import Subject, load_subject

TABLES = ("bbb", "bace", "esol", "lipophilicity")
MAX_TOKENS = 100


def gasteiger(reading: Reading) -> np.ndarray:
    """Partial charges of the atoms in units of e (Gasteiger and Marsili 1980); NaN for elements without parameters."""
    mol = Chem.Mol(reading.parsed)
    rdPartialCharges.ComputeGasteigerCharges(mol)
    found = np.asarray([atom.GetDoubleProp("_GasteigerCharge") for atom in mol.GetAtoms()])
    return np.where(np.isfinite(found), found, np.nan)


def crippen(reading: Reading) -> np.ndarray:
    """Contributions of the atoms to logP (Wildman and Crippen 1999)."""
    return np.asarray([logp for logp, _ in Crippen._pyGetAtomContribs(reading.parsed)])  # pyright: ignore


QUANTITIES: dict[str, Callable[[Reading], np.ndarray]] = {"Gasteiger charge": gasteiger, "logP share": crippen}


def molecules(subject: Subject, n: int, seed: int, progress: Progress) -> Ground:
    """`n` random molecules of the bundled tables, as `subject` reads them, with the concepts of chemistry."""
    texts = sorted({text for name in TABLES for text in bundled_table(name)["smiles"]})
    chosen = np.random.default_rng((seed, 9)).permutation(len(texts))[:n]
    kept = [texts[i] for i in sorted(chosen) if len(texts[i]) <= MAX_TOKENS]
    rows = pl.DataFrame({"index": range(len(kept)), "name": [None] * len(kept), "sequence": kept})
    data = prepare(
        subject,
        domain_of("molecule"),
        rows,
        [],
        seed=seed,
        progress=lambda items: progress(items, "concepts of molecules"),
    )
    return Ground(data.domain, data.readings, data.table, QUANTITIES)


def molecule_bench(n: int, per_cell: int, seed: int, progress: Progress = lambda items, _: items) -> Bench:
    """The bench of the study: `n` molecules, `per_cell` functions of each cell."""
    return bench(molecules(load_subject("bundled:molm"), n, seed, progress), per_cell=per_cell, seed=seed)


def entrants(n_permutations: int) -> dict[str, Labeler]:
    builtin = Builtin(n_permutations)
    return {
        "built-in": builtin,
        "best concept": best_concept,
        "token identity": token_identity,
        "built-in, misled": misled(builtin),
        "best concept, misled": misled(best_concept),
    }


@study("graded_labelers", "labels of features graded on functions whose definition is known: the built-in labeler")
def graded_labelers(setting: Setting) -> Outcome:
    made = molecule_bench(1_500 if setting.quick else 4_500, 20, setting.seed, setting.progress)
    tables = compare(made, entrants(200 if setting.quick else 1_000), ("built-in", "best concept"))
    size = (
        f"{len(made.functions)} functions on {len(made.ground.readings)} molecules, a third of which grade; "
        f"{len(made.listed.table.token_concepts)} of {len(made.ground.table.token_concepts)} concepts are in the list. "
        "auroc: over tokens; within: among tokens of equal text; an abstention counts as chance. apart: 1 − Jaccard of "
        "the concept most like the function. misled: shown shuffled activations; shuffled: its predictions are. "
        "Intervals over functions; of shares exact."
    )
    return Outcome(tables, (verdict(tables["cells"]), size))


def verdict(cells: list[dict[str, Any]]) -> str:
    """On the built-in labeler, from the table `cells`."""
    row = {cell["cell"]: cell for cell in cells if cell["labeler"] == "built-in"}
    whole, none = row["all but none"], row["none"]
    said = [f"{row[name]['named']:.2f} of {name}" for name in CORRUPTED]
    score = ", ".join(f"{name} {row[name]['auroc']:.2f}" for name in ("atomic", "composed", "graded", "relational"))
    return (
        f"The built-in labeler predicts where a function fires with AUROC {whole['auroc']:.2f} "
        f"{_ends(whole['auroc_ci'])} ({score}), abstains on {none['abstained']:.2f} {_ends(none['abstained_ci'])} of "
        f"what is no concept and on {whole['abstained']:.2f} {_ends(whole['abstained_ci'])} of what is one, and names "
        f"the corruption in {', '.join(said)}."
    )


def _ends(ci: tuple[float, float]) -> str:
    return f"[{ci[0]:.2f}, {ci[1]:.2f}]"
