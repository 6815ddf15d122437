"""Fit the bundled probes on mean-pooled final hidden states, beside ECFP4 + random forest on the same split.

    python scripts/build_probes.py DATA --subject src/isotrace/assets/molm

`bbb`  blood-brain barrier, B3DB, log-odds of BBB+, scaffold split of the data set (train / valid / test)
`esol` water solubility, ESOL, log mol/l, same kind of split
The regularisation strength is chosen on valid; the table is measured on test; CIs are bootstrap over molecules.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import torch
from rdkit import Chem, RDLogger
from rdkit.Chem import rdFingerprintGenerator
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score, root_mean_squared_error
from sklearn.preprocessing import StandardScaler

from isotrace.activations.harvest import Corpus
from isotrace.base.errors import InputError
from isotrace.subjects.probe import Probe, pool
from isotrace.subjects.subject import Subject, load_subject

RDLogger.DisableLog("rdApp.*")
TASKS = {
    "bbb": (
        "b3db/b3db_classification.csv.gz",
        "bbb",
        "classification",
        "log-odds",
        "blood-brain barrier, log-odds of BBB+",
    ),
    "esol": (
        "moleculenet/esol.csv",
        "measured_log_solubility_mol_per_l",
        "regression",
        "log mol/l",
        "water solubility (ESOL), log mol/l",
    ),
}


def table(data: Path, task: str, subject: Subject) -> tuple[pl.DataFrame, int]:
    """(rows with smiles, y, split; how many were rejected): unparsable or beyond the subject's tokens."""
    file, column, kind, _, _ = TASKS[task]
    frame = pl.read_csv(data / file, columns=["smiles", column, "split_scaffold"], infer_schema=False)
    y = (pl.col(column) == "BBB+").cast(pl.Float64) if kind == "classification" else pl.col(column).cast(pl.Float64)
    frame = frame.with_columns(y.alias("y"))
    usable = []
    for smiles in frame["smiles"]:
        try:
            usable.append(Chem.MolFromSmiles(smiles) is not None and bool(subject.tokenize([smiles])))
        except InputError:
            usable.append(False)
    return frame.filter(pl.Series(usable)), len(usable) - sum(usable)


@torch.no_grad()
def pooled(subject: Subject, smiles: list[str], hidden=None) -> np.ndarray:
    """Mean-pooled final hidden states `[molecules, d_model]`; `hidden(batch)` may compute them otherwise."""
    corpus, result = Corpus.of(subject, smiles), np.zeros((len(smiles), subject.d_model), dtype=np.float64)
    assert len(corpus.ids) == len(smiles)
    order = np.argsort(corpus.lengths, kind="stable")
    at = 0
    while at < len(order):
        length = corpus.lengths[order[at]]
        rows = [i for i in order[at : at + 128] if corpus.lengths[i] == length]
        batch = corpus.batch(np.asarray(rows))
        final = subject.hidden(batch.ids, batch.mask) if hidden is None else hidden(batch)
        result[rows] = pool(subject, batch, final).numpy()
        at += len(rows)
    return result


def metrics(kind: str, y: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    if kind == "classification":
        return {"auroc": float(roc_auc_score(y, predicted))}
    return {"rmse": float(root_mean_squared_error(y, predicted)), "r2": float(r2_score(y, predicted))}


def with_ci(kind: str, y: np.ndarray, predicted: np.ndarray, seed: int = 0, n: int = 1_000) -> dict[str, dict]:
    rng, draws = np.random.default_rng(seed), []
    while len(draws) < n:
        rows = rng.integers(0, len(y), len(y))
        if kind == "regression" or 0 < y[rows].mean() < 1:
            draws.append(metrics(kind, y[rows], predicted[rows]))
    point = metrics(kind, y, predicted)
    low_high = {k: np.quantile([d[k] for d in draws], [0.025, 0.975]).tolist() for k in point}
    return {k: {"value": point[k], "ci": low_high[k]} for k in point}


def fit(kind: str, x: dict[str, np.ndarray], y: dict[str, np.ndarray]):
    """(scaler, linear model), its regularisation chosen on valid."""
    scaler = StandardScaler().fit(x["train"])
    z = {k: scaler.transform(v) for k, v in x.items()}
    if kind == "classification":
        models = [LogisticRegression(C=c, max_iter=3_000) for c in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)]
        score = lambda m: roc_auc_score(y["valid"], m.decision_function(z["valid"]))  # noqa: E731
    else:
        models = [Ridge(alpha=a) for a in (3, 10, 30, 100, 300, 1_000)]
        score = lambda m: -root_mean_squared_error(y["valid"], m.predict(z["valid"]))  # noqa: E731
    return scaler, max((m.fit(z["train"], y["train"]) for m in models), key=score)


def fingerprints(smiles: list[str]) -> np.ndarray:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    return np.stack([generator.GetFingerprintAsNumPy(Chem.MolFromSmiles(s)) for s in smiles])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--subject", default="src/isotrace/assets/molm")
    args = parser.parse_args()
    subject = load_subject(args.subject, domain="molecule")
    folder = subject.files.folder / "probes"
    folder.mkdir(exist_ok=True)
    report = {}
    for task, (file, _, kind, unit, description) in TASKS.items():
        frame, rejected = table(args.data, task, subject)
        parts = {s: frame.filter(pl.col("split_scaffold") == s) for s in ("train", "valid", "test")}
        smiles = {k: p["smiles"].to_list() for k, p in parts.items()}
        y = {k: p["y"].to_numpy() for k, p in parts.items()}
        x = {k: pooled(subject, s) for k, s in smiles.items()}
        scaler, model = fit(kind, x, y)
        probe = Probe(
            format="isotrace-probe",
            format_version=1,
            name=task,
            description=description,
            task=kind,
            unit=unit,
            subject_weights_sha256=subject.files.weights_sha256,
            mean=scaler.mean_.tolist(),
            scale=scaler.scale_.tolist(),
            weight=np.ravel(model.coef_).tolist(),
            bias=float(np.ravel(model.intercept_)[0]),
        )
        (folder / f"{task}.json").write_text(json.dumps(asdict(probe)) + "\n")
        predicted = probe.value(torch.from_numpy(x["test"]).float()).double().numpy()
        forest = (RandomForestClassifier if kind == "classification" else RandomForestRegressor)(
            500, random_state=0, n_jobs=-1
        ).fit(fingerprints(smiles["train"]), y["train"])
        prints = fingerprints(smiles["test"])
        baseline = forest.predict_proba(prints)[:, 1] if kind == "classification" else forest.predict(prints)
        report[task] = {
            "data": file,
            "split": "Murcko scaffold",
            "n": {k: len(v) for k, v in smiles.items()} | {"rejected": rejected},
            "probe": with_ci(kind, y["test"], predicted),
            "ecfp4_random_forest": with_ci(kind, y["test"], np.asarray(baseline)),
            "untrained_subject_probe": with_ci(kind, y["test"], untrained(subject, kind, smiles, y)),
        }
        print(json.dumps({task: report[task]}))
    (subject.files.folder / "probe_report.json").write_text(json.dumps(report, indent=2) + "\n")


def untrained(subject: Subject, kind: str, smiles: dict[str, list[str]], y: dict[str, np.ndarray]) -> np.ndarray:
    """Test predictions of the same probe on a freshly initialised copy of the subject."""
    torch.manual_seed(0)
    config = subject.model.config
    copy = Subject(type(subject.model)(config), subject.tokenizer, subject.files)
    copy.model.set_attn_implementation("isotrace")
    x = {k: pooled(copy, s) for k, s in smiles.items()}
    scaler, model = fit(kind, x, y)
    z = scaler.transform(x["test"])
    return model.decision_function(z) if kind == "classification" else model.predict(z)


if __name__ == "__main__":
    main()
