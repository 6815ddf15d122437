"""What an edit costs a forward pass: the edited subject against the plain one, in one process.

    python benchmarks/steer.py [--rounds 60] [--threads 1] [--json]

Every kind of edit is put on the bundled subject, at one layer in the middle and, `all layers`, at each of them with
norms kept, and the same batches run in turn with and without it; the plan is resolved anew in every pass, as generators
do. The ratio is of processor times of the same round, so that a busy machine does not count; its spread is over
rounds. Features are those of the bundled dictionary, which has to be encoded where they are edited.
"""

import argparse
import json
import time
from dataclasses import replace

import numpy as np
import torch

import isotrace
from isotrace.dictionaries.features import Features
from isotrace.interventions import Plan, Residuals
from isotrace.steering import (
    AddEdit,
    AffineEdit,
    Edits,
    FeatureEdit,
    GainEdit,
    InputEdit,
    RemoveEdit,
    SetEdit,
)
from isotrace.subjects.subject import Subject

BATCHES = {"1 × 23 tokens": (1, "CC(=O)Oc1ccccc1C(=O)O"), "64 × 23 tokens": (64, "CC(=O)Oc1ccccc1C(=O)O")}
GOAL = 1.15


def plans(subject: Subject) -> dict[str, Plan]:
    d, middle = subject.d_model, subject.n_layers // 2
    generator = torch.Generator().manual_seed(0)
    vector, other = torch.randn(2, d, generator=generator)
    at = {"components": Residuals(), "layer": middle}
    dictionary = isotrace.load_dictionary("bundled:molm-clt", subject)
    features = {"units": tuple(range(8)), "values": torch.ones(8), "pool": tuple(range(64))}
    add = AddEdit(**at, direction=vector, scale=1.0)
    edits = {
        "add": add,
        "add, norm kept": replace(add, norm="keep"),
        "remove": RemoveEdit(**at, direction=vector),
        "set": SetEdit(**at, direction=vector, target=1.0, mean=other),
        "affine": AffineEdit(**at, scale=1 + vector / d, shift=other / d),
        "gain": GainEdit(**at, beta=vector),
        "feature": FeatureEdit(components=Features(dictionary), layer=middle, **features),
        "input": InputEdit(**at, sources={0: 0.5}, size=(1, d)),
    }
    found = {name: edit.plan(0.1) for name, edit in edits.items()}
    every = Edits(tuple(replace(add, layer=layer, norm="keep") for layer in range(subject.n_layers)))
    return found | {"all layers": every.plan(0.1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    subject = isotrace.load_subject("bundled:molm")
    rows = []
    for name, plan in plans(subject).items():
        for size, (n, smiles) in BATCHES.items():
            batch = subject.tokenize([smiles] * n)
            times: dict[str, list[float]] = {"edited": [], "plain": []}
            for number in range(args.rounds):
                pair = [("edited", plan), ("plain", None)]
                for label, one in pair if number % 2 else pair[::-1]:
                    started = time.process_time()
                    subject.run(batch, plan=one)
                    times[label].append(time.process_time() - started)
            low, middle, high = np.quantile(np.divide(times["edited"], times["plain"]), [0.25, 0.5, 0.75])
            row = {"edit": name, "batch": size, "plain_ms": 1e3 * float(np.median(times["plain"]))}
            rows.append(row | {"ratio": float(middle), "quartiles": (float(low), float(high)), "goal": GOAL})
            if not args.json:
                spread = f"{middle:.3f} × plain ({low:.3f} to {high:.3f})"
                print(f"{name:15} {size:15} plain {rows[-1]['plain_ms']:7.2f} ms   {spread}", flush=True)
    if args.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
