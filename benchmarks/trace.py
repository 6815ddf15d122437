"""Wall time of one trace after start-up, for inputs of growing length, and of its phases.

    python benchmarks/trace.py [--rounds 5] [--threads 2] [--json]
    python benchmarks/trace.py --versions BEFORE/src AFTER/src [--rounds 5] [--threads 1] [--only aspirin]

The second form compares two versions: a process each, one trace of either in turn, in seconds of the processor, with
the passes of a trace and the rows that its blocks run, as rows of whole passes.

No peer traces a masked chemical model, so the numbers stand beside a floor measured in the same rounds: the
same number of plain forward passes of the subject as the trace needs for its interventions alone.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from isotrace.attribution.trace import TraceConfig
from isotrace.subjects.dispatch import watched
from isotrace.verbs.tracing import Tracer

INPUTS = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "diazepam": "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21",
    "60 tokens": "CC1(C)SC2C(NC(=O)Cc3ccccc3)C(=O)N2C1C(=O)OCCNC(=O)c1ccccc1Cl",
}


def seconds(function, clock=time.perf_counter) -> float:
    started = clock()
    function()
    return clock() - started


def floor_of(subject, smiles: str, config: TraceConfig):
    """As many plain passes of 32 rows as the interventions need."""
    batch = subject.tokenize([smiles] * 32)
    passes = -(-(config.n_nodes + 2 * (config.n_controls + 1) + 1) // 32)
    return lambda: [subject.run(batch) for _ in range(passes)]


def counted(tracer: Tracer, smiles: str, config: TraceConfig) -> dict[str, float]:
    """Passes of one trace, and the rows that ran, as a mean over the blocks."""
    subject, rows, passes = tracer.subject, [], []
    hidden = type(subject).hidden

    def counting(*given):
        passes.append(1)
        return hidden(*given)

    type(subject).hidden = counting
    # what an attention writes runs in every kind of pass, but in blocks that are given
    first = [subject.hookpoint(f"layers.{layer}.attn_out")[0] for layer in range(subject.n_layers)]
    try:
        with watched(first, lambda module, args, output: rows.append(len(args[0]))):
            tracer.trace(smiles, "probe:bbb", config)
    finally:
        type(subject).hidden = hidden
    return {"passes": len(passes), "rows": sum(rows) / subject.n_layers}


def serve() -> None:
    """One trace and its floor, in CPU seconds, for every line of stdin; first what is counted of each."""
    tracer, config = Tracer("bundled:molm", "bundled:molm-clt"), TraceConfig()
    known: dict[str, dict[str, float]] = {}
    for line in map(str.strip, sys.stdin):
        smiles = INPUTS[line]
        if line not in known:
            known[line] = counted(tracer, smiles, config)
        clock = time.process_time
        floor = seconds(floor_of(tracer.subject, smiles, config), clock)
        found = seconds(lambda: tracer.trace(smiles, "probe:bbb", config), clock)  # noqa: B023
        print(json.dumps(known[line] | {"trace": found, "floor": floor}), flush=True)


def compared(sources: list[Path], names: list[str], rounds: int, threads: int) -> None:
    workers = []
    for source in sources:
        environment = os.environ | {"PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, __file__, "--serve"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        workers.append(subprocess.Popen(command, env=environment, **pipes))
    for name in names:
        found = []
        for _ in range(rounds):
            for worker in workers:
                worker.stdin.write(f"{name}\n")
                worker.stdin.flush()
                found.append(json.loads(worker.stdout.readline()))
                print(name, found[-1], file=sys.stderr, flush=True)
        before, after = found[::2], found[1::2]
        ratio = np.divide([row["trace"] for row in before], [row["trace"] for row in after])
        print(f"{name}: before ÷ after {np.median(ratio):.2f} ({ratio.min():.2f}–{ratio.max():.2f})", flush=True)
        for which, rows in (("before", before), ("after", after)):
            over = np.median([row["trace"] / row["floor"] for row in rows])
            cpu = np.median([row["trace"] for row in rows])
            print(
                f"  {which}: {rows[0]['passes']} passes, {rows[0]['rows']:.0f} rows, {cpu:.2f} s, {over:.1f}× the floor"
            )
    for worker in workers:
        worker.stdin.close()
        worker.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2, help="of each process")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--versions", nargs=2, type=Path, metavar="SRC")
    parser.add_argument("--only", nargs="*", choices=INPUTS, default=[*INPUTS])
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return
    if args.versions:
        compared(args.versions, args.only, args.rounds, args.threads)
        return
    torch.set_num_threads(args.threads)
    tracer, config = Tracer("bundled:molm", "bundled:molm-clt"), TraceConfig()
    subject = tracer.subject
    tracer.trace("CCO", "probe:bbb", config)
    rows = []
    for name, smiles in ((name, INPUTS[name]) for name in args.only):
        floor, n_tokens = floor_of(subject, smiles, config), int(subject.tokenize([smiles]).mask.sum())
        times = {"trace": [], "page": [], "floor": []}
        for _ in range(args.rounds):
            kept = []
            times["trace"].append(seconds(lambda: kept.append(tracer.trace(smiles, "probe:bbb", config))))  # noqa: B023
            times["page"].append(seconds(lambda: kept[0].page()))  # noqa: B023
            times["floor"].append(seconds(floor))
        ratio = np.divide(times["trace"], times["floor"])
        row = {"input": name, "tokens": n_tokens, "threads": args.threads}
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
