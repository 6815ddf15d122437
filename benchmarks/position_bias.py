"""How much a model's predictions depend on the order in which segments are written, before and after it is hidden.

    python benchmarks/position_bias.py [--source bundled:molm] [--inputs 50] [--threads 1] [--json]

The score is the mean total-variation distance between what is predicted of a masked token in an input as it is written
and in up to five other orders of its segments; beside it the mean negative log-likelihood of these tokens. A model of
reactions reads bundled ones of two reactants or more, spread over the table, a model of molecules mixtures of three
bundled molecules of at most 20 characters.
"""

import argparse
import json
import time

import numpy as np
import torch

import isotrace
from isotrace.steering.inference import PositionInvariant, fragments, position_bias
from isotrace.steering.inference.position_invariant import variant
from isotrace.studies.study import bundled_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="bundled:molm")
    parser.add_argument("--inputs", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    subject = isotrace.load_subject(args.source)
    texts = inputs(subject.files.domain, args.inputs)
    found = {"source": subject.source, "positions": variant(subject), "inputs": args.inputs}
    for name, plan in (("before", None), ("after", PositionInvariant())):
        begun = time.process_time()
        bias = position_bias(subject, texts, plan)
        low, high = np.quantile([row.score for row in bias.rows], (0.05, 0.95))
        found[name] = {"score": bias.score, "5 %": low, "95 %": high, "loss": bias.loss, "rejects": len(bias.rejects)}
        found[name]["cpu_s"] = time.process_time() - begun
    if args.json:
        print(json.dumps(found))
        return
    print(f"{found['source']}, {found['positions']} positions, {args.inputs} inputs")
    for name in ("before", "after"):
        one = found[name]
        span = f"90 % lie from {one['5 %']:.2g} to {one['95 %']:.2g}"
        print(f"{name:7} {one['score']:.3g} ({span}), loss {one['loss']:.3f} nats; {one['cpu_s']:.0f} s")


def inputs(domain: str | None, n: int) -> list[str]:
    if domain == "reaction":
        texts = [text for text in bundled_table("reactions")["reaction"].to_list() if len(fragments(text)) > 1]
    else:
        short = [text for text in bundled_table("esol")["smiles"].to_list() if len(text) <= 20 and "." not in text]
        texts = [".".join(short[i : i + 3]) for i in range(0, len(short) - 2, 3)]
    return [texts[i] for i in np.linspace(0, len(texts) - 1, n).astype(int)]


if __name__ == "__main__":
    main()
