"""Fit the bundled probes, on the scaffold splits of their tables, and report what they and their baselines are worth.

    python scripts/build_probes.py --subject src/isotrace/assets/molm

Of every property some ways to read it are tried (the final hidden state or all, mean or mean and maximum); the one that
predicts the part `valid` best is kept. The report is of the part `test`, which nothing was chosen on.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import polars as pl
from rdkit import RDLogger

from isotrace.datasets.inputs import read_inputs, rejects_frame
from isotrace.datasets.replicates import cleaned
from isotrace.datasets.tasks import labelled, parts_named
from isotrace.domains.domain import domain_of
from isotrace.probing.crossed import STRENGTHS
from isotrace.probing.linear import fitted, searched
from isotrace.probing.probe import ProbeSettings, about, fit_probe
from isotrace.probing.states import pooled_states
from isotrace.stats.metrics import METRICS
from isotrace.subjects.probe import Pool
from isotrace.subjects.subject import load_subject

RDLogger.DisableLog("rdApp.*")
TASKS = Path(__file__).parents[1] / "src/isotrace/assets/tasks"
WAYS: tuple[tuple[str, Pool], ...] = (("final", "mean"), ("all", "mean"), ("all", "mean+max"))
# name → (table, column, unit, description, ways to read it)
PROPERTIES: dict[str, tuple[str, str, str, str, tuple[tuple[str, Pool], ...]]] = {
    "logd": ("lipophilicity", "logD", "log units", "lipophilicity at pH 7.4, logD", WAYS),
    "esol": ("esol", "measured_log_solubility_mol_per_l", "log mol/l", "water solubility (ESOL), log mol/l", WAYS),
    # no way to read it beats an untrained copy: the simplest, as a warning
    "bbb": ("bbb", "bbb", "log-odds", "blood-brain barrier, log-odds of BBB+", WAYS[:1]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", default="src/isotrace/assets/molm")
    parser.add_argument("--tasks", type=Path, default=TASKS)
    parser.add_argument("--only", nargs="*", choices=PROPERTIES, help="these alone, into the report that is there")
    args = parser.parse_args()
    subject, domain = load_subject(args.subject, domain="molecule"), domain_of("molecule")
    every = tuple(range(subject.n_layers + 1))
    path = subject.files.folder / "probe_report.json"
    report = json.loads(path.read_text()) if args.only else {}
    for name, (table, label, unit, description, ways) in PROPERTIES.items():
        if args.only and name not in args.only:
            continue
        rows, rejects = read_inputs(args.tasks / f"{table}.csv.gz")
        ready = cleaned(rows, rejects, domain, label=label, split=None, salts="keep")
        given = {"label": label, "kind": None, "group": "murcko_scaffold", "mutations": None}
        # molecules without a ring share the empty scaffold, which the split keeps together
        scaffold = pl.col("murcko_scaffold").fill_null("acyclic").replace("", "acyclic")
        data = labelled(
            subject, domain, ready.rows.with_columns(scaffold), split="split_scaffold", rejects=ready.rejects, **given
        )
        parts = np.asarray(parts_named(data, "split_scaffold", 0))
        fit, valid = (np.flatnonzero(parts == part) for part in ("fit", "discover"))
        y = np.asarray([e.y for e in data.examples], dtype=float)
        task = "regression" if data.kind == "regression" else "classification"
        tried = {}
        for layers, pool in ways:
            x = pooled_states(subject, data.examples, every if layers == "all" else every[-1:], pool)
            kept = np.concatenate([fit, valid])
            inner = [(np.arange(len(fit)), np.arange(len(fit), len(kept)))]
            strength = searched(x[kept], y[kept], task, STRENGTHS[task], inner)[1]
            weight, bias = fitted(x[fit], y[fit], task, strength)
            metric = METRICS["rmse" if task == "regression" else "auroc"]
            tried[layers, pool] = float(metric(x[valid] @ weight + bias, y[valid], np.ones((1, len(valid))))[0])
        layers, pool = (min if task == "regression" else max)(tried, key=lambda way: tried[way])
        settings = ProbeSettings(None if layers == "all" else every[-1:], pool)
        found = fit_probe(
            subject,
            domain,
            data,
            settings,
            name=name,
            unit=unit,
            description=description,
            split="split_scaffold",
            positive="BBB+" if name == "bbb" else None,
        )
        found.probe.save(subject.files.folder / "probes" / name)
        report[name] = {
            "data": f"{table}.csv.gz", "split": "Murcko scaffold", "unit": unit, "task": task,
            "n": {p: int((parts == k).sum()) for p, k in (("train", "fit"), ("valid", "discover"), ("test", "report"))}
            | {"rejected": rejects_frame(data.rejects).height},
            "layers": list(found.probe.config.layers), "pool": pool,
            "on_valid": [{"layers": way[0], "pool": way[1], "value": value} for way, value in tried.items()],
            **about(found),
        }  # fmt: skip
        print(json.dumps({name: report[name]}), flush=True)
    path.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
