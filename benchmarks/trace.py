"""Wall time of one trace after start-up, for inputs of growing length, and of its phases.

    python benchmarks/trace.py [--rounds 5] [--threads 2] [--json]

No peer traces a masked chemical model, so the numbers stand beside a floor measured in the same rounds: the
same number of plain forward passes of the subject as the trace needs for its interventions alone.
"""

import argparse
import json
import time

import numpy as np
import torch

from isotrace.attribution.trace import TraceConfig
from isotrace.verbs.tracing import Tracer

INPUTS = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "diazepam": "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21",
    "60 tokens": "CC1(C)SC2C(NC(=O)Cc3ccccc3)C(=O)N2C1C(=O)OCCNC(=O)c1ccccc1Cl",
}


def seconds(function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tracer, config = Tracer("bundled:molm", "bundled:molm-clt"), TraceConfig()
    subject = tracer.subject
    tracer.trace("CCO", "probe:bbb", config)
    rows = []
    for name, smiles in INPUTS.items():
        batch = subject.tokenize([smiles] * 32)
        passes = -(-(config.n_nodes + 2 * (config.n_controls + 1) + 1) // 32)
        times = {"trace": [], "page": [], "floor": []}
        for _ in range(args.rounds):
            kept = []
            times["trace"].append(seconds(lambda: kept.append(tracer.trace(smiles, "probe:bbb", config))))  # noqa: B023
            times["page"].append(seconds(lambda: kept[0].page()))  # noqa: B023
            times["floor"].append(seconds(lambda: [subject.run(batch) for _ in range(passes)]))  # noqa: B023
        ratio = np.divide(times["trace"], times["floor"])
        row = {"input": name, "tokens": int(batch.mask[0].sum()), "threads": args.threads}
        row |= {f"{k}_s": float(np.median(v)) for k, v in times.items()}
        row |= {"ratio": float(np.median(ratio)), "ratio_min": float(ratio.min()), "ratio_max": float(ratio.max())}
        rows.append(row)
    if args.json:
        print(json.dumps(rows))
        return
    for r in rows:
        print(
            f"{r['input']:>10} {r['tokens']:>3} tokens: trace {r['trace_s']:.2f} s, page {r['page_s']:.2f} s, "
            f"{r['ratio']:.0f}× the floor ({r['ratio_min']:.0f}–{r['ratio_max']:.0f})"
        )


if __name__ == "__main__":
    main()
