"""How long `isotrace recommend` takes, and how often it abstains where labels mean nothing.

    python benchmarks/recommend.py bundled:molm,FOLDER,… --data mine.csv --label logS [--shuffles 100] [--json]

All is done as the command does it, from reading the rows on; a shuffle permutes the labels and goes all the way again.
The share of abstentions has a 95 % interval by Clopper and Pearson.
"""

import argparse
import json
import time

import numpy as np
import polars as pl
from scipy.stats import binomtest

import isotrace
from isotrace.datasets.inputs import read_inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects")
    parser.add_argument("--data", required=True)
    parser.add_argument("--label", required=True)
    parser.add_argument("--domain", default="molecule")
    parser.add_argument("--shuffles", type=int, default=0)
    parser.add_argument("--bootstrap", type=int, default=1_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    started = time.perf_counter()
    names = args.subjects.split(",")
    subjects = tuple(isotrace.load_subject(name, domain=args.domain) for name in names)
    rows = read_inputs(args.data)[0].drop("index", "name")
    given = {"label": args.label, "bootstrap": args.bootstrap, "progress": False}
    found = isotrace.recommend(subjects, rows, **given)
    told = {"checkpoints": len(names), "rows": found.summary["n"]["rows"], "seconds": time.perf_counter() - started,
            "verdict": found.summary["verdict"]}  # fmt: skip
    chosen = []
    for seed in range(args.shuffles):
        labels = pl.Series(args.label, np.random.default_rng((seed, 25)).permutation(rows[args.label].to_numpy()))
        chosen.append(isotrace.recommend(subjects, rows.with_columns(labels), **given, seed=seed).summary["choice"])
        if not args.json:
            print(f"shuffle {seed}: {chosen[-1] or 'cannot tell'}", flush=True)
    if chosen:
        abstained = sum(one is None for one in chosen)
        ends = binomtest(abstained, len(chosen)).proportion_ci(method="exact")
        told |= {"shuffles": len(chosen), "abstained": abstained, "ci": [float(ends.low), float(ends.high)]}
    print(json.dumps(told) if args.json else "\n".join(f"{name}: {value}" for name, value in told.items()))


if __name__ == "__main__":
    main()
