"""The tasks of `atom_truth`: a pool of molecules, readouts of labels with known atoms, and how scores are judged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import polars as pl
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

from isotrace.base.files import write_whole
from isotrace.base.settings import child_seed
from isotrace.domains.molecule import parse
from isotrace.stats.metrics import auroc, spearman
from isotrace.studies.atoms.forest import Forest
from isotrace.studies.atoms.readouts import Readout, fitted, pooled
from isotrace.studies.atoms.rules import Rule, drawn
from isotrace.studies.study import Setting
from isotrace.subjects.probe import Pool as How
from isotrace.subjects.subject import Subject


@dataclass(frozen=True)
class Sizes:
    """`pool`, `measured`: molecules to read, of those with planted labels and of those with measured ones. `cell`: most
    of each cell of a rule to fit on. `molecules`, `pairs`: explained of each task. `spellings`: other spellings to
    average over. `rules`: how many of `RULES`."""

    pool: int
    measured: int
    cell: int
    molecules: int
    pairs: int
    spellings: int
    rules: int


PARTS = (0.7, 0.1, 0.2)
"""Of planted labels: shares to fit, to choose and to test."""


@dataclass(frozen=True)
class Pool:
    """Molecules with their states `[molecules, d_pooled]`, pooled as `how` says; `part` is 0 to fit, 1 to choose, 2 to
    test."""

    texts: list[str]
    mols: list[Chem.Mol]
    part: np.ndarray
    states: np.ndarray
    label: np.ndarray
    how: How

    def mol(self, row: int) -> Chem.Mol:
        return self.mols[row]

    def taken(self, rows: np.ndarray, labels: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        names = enumerate(("train", "valid", "test"))
        chosen = {name: rows[self.part[rows] == number] for number, name in names}
        return {name: (self.states[at], labels[at]) for name, at in chosen.items()}


@dataclass(frozen=True)
class Task:
    """What is read, on which molecules, and how atoms are judged: `judge(row, scores [atoms])` → numbers by name."""

    name: str
    readout: Readout
    forest: Forest
    rows: list[int]
    judge: Callable[[int, np.ndarray], dict[str, float]]
    metric: str


def read_pool(
    subject: Subject, table: pl.DataFrame, label: str | None, most: int, setting: Setting, how: How = "mean"
) -> Pool:
    """Molecules of one part, of 8 to 40 heavy atoms and at most 100 tokens, in canonical SMILES, each once. Measured
    labels are split by scaffold, as the table says, planted ones, which ask for no new chemistry, at random."""
    parts = {"train": 0, "valid": 1, "test": 2}
    chosen: dict[str, tuple[int, float]] = {}
    rows = table.sample(fraction=1.0, shuffle=True, seed=setting.seed)
    for text, part, value in zip(rows["smiles"], rows["split_scaffold"], rows[label] if label else rows["smiles"]):  # noqa: B905
        mol = Chem.MolFromSmiles(text)
        if mol is None or "." in text or not 8 <= mol.GetNumHeavyAtoms() <= 40:
            continue
        smiles = Chem.MolToSmiles(mol)
        ids, _, refused = subject.tokenized([smiles])[0]
        if refused is None and len(ids) <= 100 and part in parts:
            chosen.setdefault(smiles, (parts[part], float(value) if label else np.nan))
        if len(chosen) == most:
            break
    texts, mols = [*chosen], [parse(smiles) for smiles in chosen]
    part, values = (np.asarray(column) for column in zip(*chosen.values(), strict=True))
    if label is None:
        part = np.random.default_rng(setting.seed).choice(3, len(part), p=PARTS)
    name = f"pool-{how}-{crc32(' '.join(texts).encode())}.npy"
    states = kept(setting.work / name, lambda: pooled(subject, texts, how, setting.progress))
    return Pool(texts, mols, part, states, values, how)


def kept(file: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    """What `make` gives, kept between runs."""
    if not file.is_file():
        array = make()
        write_whole(file, lambda out: np.save(out, array))
    return np.load(file)


def crippen(mol: Chem.Mol) -> np.ndarray:
    """Terms of RDKit's logP `[atoms]`, hydrogens counted to the atom they hang on (Wildman & Crippen 1999)."""
    whole = Chem.AddHs(mol)
    terms = np.zeros(mol.GetNumAtoms())
    for atom, (term, _) in zip(whole.GetAtoms(), rdMolDescriptors._CalcCrippenContribs(whole), strict=True):
        own = atom.GetIdx() < len(terms)
        terms[atom.GetIdx() if own else atom.GetNeighbors()[0].GetIdx()] += term
    return terms


def one(metric: Callable[..., np.ndarray], scores: np.ndarray, truth: np.ndarray) -> float:
    return float(metric(scores[:, None], truth.astype(float), np.ones((1, len(truth))))[0])


def rule_task(subject: Subject, rule: Rule, pool: Pool, sizes: Sizes, setting: Setting) -> Task:
    seed, rng = setting.seed, np.random.default_rng(child_seed(setting.seed, crc32(rule.name.encode())))
    cells = np.asarray([-1 if (c := rule.cell(mol)) is None else c for mol in pool.mols])
    parts = [drawn(cells, pool.part == p, sizes.cell, rng) for p in range(3)]
    labels = np.isin(cells, rule.positive)
    readout = fitted(
        subject, rule.name, rule.about, "log-odds", pool.taken(np.concatenate(parts), labels), pool.how, seed
    )
    forest = Forest([pool.mol(i) for i in parts[0].tolist()], labels[parts[0]], regression=False, seed=seed)
    right = parts[2][labels[parts[2]] & (readout.values > 0)]
    rows = [
        i for i in right.tolist() if rule.decoy is None or rule.decoy(pool.mol(i))
    ]  # a decoy stands beside the truth
    rows = rng.permutation(rows)[: sizes.molecules].tolist()

    def judge(row: int, scores: np.ndarray) -> dict[str, float]:
        mol = pool.mols[row]
        among = lambda atoms: np.isin(np.arange(len(scores)), [*atoms])  # noqa: E731
        truth = among(rule.truth(mol))
        found = {"signed": one(auroc, scores, truth), "size": one(auroc, np.abs(scores), truth)}
        if rule.decoy is None:
            return found
        both = truth | among(rule.decoy(mol))
        return found | {"decoy": one(auroc, scores[both], truth[both])}

    return Task(rule.name, readout, forest, rows, judge, "AUROC")


def number_task(
    subject: Subject, name: str, about: str, unit: str, labels: np.ndarray, pool: Pool, sizes: Sizes, setting: Setting
) -> Task:
    """A property whose terms are taken to be those of logP."""
    rng = np.random.default_rng(child_seed(setting.seed, crc32(name.encode())))
    everything = np.arange(len(labels))
    readout = fitted(subject, name, about, unit, pool.taken(everything, labels), pool.how, setting.seed)
    train = everything[pool.part == 0][: 2 * sizes.cell]
    forest = Forest([pool.mol(i) for i in train.tolist()], labels[train], regression=True, seed=setting.seed)
    rows = rng.permutation(everything[pool.part == 2])[: sizes.molecules].tolist()

    def judge(row: int, scores: np.ndarray) -> dict[str, float]:
        terms = crippen(pool.mols[row])
        return {"signed": one(spearman, scores, terms), "size": one(spearman, np.abs(scores), np.abs(terms))}

    return Task(name, readout, forest, rows, judge, "Spearman")
