"""What the dispatcher costs a forward pass when nothing is changed: against the same model without it.

    python benchmarks/dispatch.py [--rounds 200] [--threads 1] [--json]

Two copies of the bundled subject run the same batches in turn: one as it is loaded, and one whose modules have their
own forward back. The ratio is of times of the same round; its spread is over rounds.
"""

import argparse
import json
import time

import numpy as np
import torch

from isotrace.subjects.dispatch import Dispatched
from isotrace.subjects.subject import load_subject

BATCHES = {"1 × 23 tokens": (1, "CC(=O)Oc1ccccc1C(=O)O"), "64 × 23 tokens": (64, "CC(=O)Oc1ccccc1C(=O)O")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    ours, plain = load_subject("bundled:molm", device="cpu"), load_subject("bundled:molm", device="cpu")
    for module in plain.model.modules():
        if type(module.__dict__.get("forward")) is Dispatched:
            del module.forward
    rows = []
    for name, (n, smiles) in BATCHES.items():
        batch = ours.tokenize([smiles] * n)
        times = {"ours": [], "plain": []}
        with torch.no_grad():
            for number in range(args.rounds):
                pair = [("ours", ours), ("plain", plain)]
                for label, subject in pair if number % 2 else pair[::-1]:
                    started = time.perf_counter()
                    subject.hidden(batch.ids, batch.mask)
                    times[label].append(time.perf_counter() - started)
        ratio = np.divide(times["ours"], times["plain"])
        low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
        medians = {label: float(np.median(values)) for label, values in times.items()}
        row = {"batch": name, "plain_ms": 1e3 * medians["plain"], "ratio": float(middle)}
        rows.append(row | {"quartiles": (low, high), "ratio_of_medians": medians["ours"] / medians["plain"]})
    if args.json:
        print(json.dumps(rows))
        return
    for row in rows:
        low, high = row["quartiles"]
        print(f"{row['batch']:>16}: {row['plain_ms']:.2f} ms plain, ratio {row['ratio']:.3f} ({low:.3f}–{high:.3f}), "
              f"of medians {row['ratio_of_medians']:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
