"""What it costs to fit a direction in closed form: reading, labels, confounds and all, on the bundled subject.

    python benchmarks/directions.py [--sequences 2000] [--atoms 38] [--threads 2] [--methods …] [--json]

Sequences are chains of C, N and O drawn at random, of `atoms` atoms each and two special tokens; the label says whether
N or O are more. Every layer is edited; seconds, those of the clock and of all processors together, are from a list of
strings to edits.
"""

import argparse
import json
import time

import numpy as np
import torch

import isotrace
from isotrace.steering.contrast import Contrast
from isotrace.steering.directions import DIRECTIONS

GOAL = 60.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=2_000)
    parser.add_argument("--atoms", type=int, default=38)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=["difference_in_means"])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    subject, rng = isotrace.load_subject("bundled:molm"), np.random.default_rng(0)
    texts = ["".join(rng.choice([*"CCCNO"], args.atoms)) for _ in range(args.sequences)]
    labels = ["more N" if text.count("N") > text.count("O") else "not" for text in texts]
    groups = [f"{i // 4}" for i in range(len(texts))]
    started, spent = time.perf_counter(), time.process_time()
    contrast = Contrast.of(subject, texts, labels, groups=groups, positive="more N")
    read, read_cpu = time.perf_counter() - started, time.process_time() - spent
    rows = []
    for method in args.methods:
        started, spent = time.perf_counter(), time.process_time()
        edits = DIRECTIONS[method].fit(subject, contrast)
        seconds, cpu = read + time.perf_counter() - started, read_cpu + time.process_time() - spent
        tokens = float(np.mean([len(e.ids) for e in contrast.examples]))
        rows.append({
            "method": method, "sequences": len(contrast), "tokens": tokens, "layers": len(edits.edits),
            "seconds": round(seconds, 1), "cpu": round(cpu, 1), "reading": round(read_cpu, 1),
            "goal": GOAL, "met": seconds <= GOAL,
        })  # fmt: skip
    print(json.dumps(rows) if args.json else "\n".join(str(row) for row in rows))


if __name__ == "__main__":
    main()
