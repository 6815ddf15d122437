"""Wall time of the methods that rank edges, taken in turns in one process: path patching, edge attribution patching
and its integrated gradients, on pairs of molecules with a masked token.

    python benchmarks/edges.py [--pairs 6] [--rounds 3] [--tokens 32] [--threads 2] [--json]
"""

import argparse
import json

import numpy as np
import torch

from isotrace.studies.edge_methods import EXACT, FAST, SOURCE, pairs, timed
from isotrace.subjects.subject import load_subject


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    problems = pairs(load_subject(SOURCE), "train", args.pairs, args.tokens, seed=0)
    names = (EXACT, *FAST)
    for name in names:
        timed(name, problems[0])
    seconds = {name: [] for name in names}
    for _ in range(args.rounds):
        for problem in problems:
            for name in names:
                seconds[name].append(timed(name, problem)[1])
    rows = []
    for name in names:
        ratio = np.divide(seconds[EXACT], seconds[name])
        row = {"method": name, "threads": args.threads, "seconds": float(np.median(seconds[name]))}
        row |= {"times_faster": float(np.median(ratio)), "min": float(ratio.min()), "max": float(ratio.max())}
        rows.append(row)
    if args.json:
        print(json.dumps(rows))
        return
    for r in rows:
        print(
            f"{r['method']:>26} {r['seconds']:7.3f} s, {r['times_faster']:5.1f} times as fast as path patching "
            f"({r['min']:.1f} to {r['max']:.1f})"
        )


if __name__ == "__main__":
    main()
