"""Wall time of one full training step of a dictionary: ours, its peers and the floor, interleaved in one process.

    python benchmarks/train_step.py --shape A --tokens 2048 --threads 2 --dtype bf16 [--rounds 7] [--json]
    python benchmarks/train_step.py --loss-curve [--steps 200] [--dtype fp32]

A step is forward, loss, backward, clipping and constraints where they belong to the peer, and the optimiser, on
float32 weights. `ratio` is a peer's time over ours within a round: median, and the smallest and largest round.
`floor.py` says what the floor counts. `--rescore` has ours compute float32 results with a bfloat16 product.
OpenMP's threads sleep between PyTorch's operations, for all alike, unless OMP_WAIT_POLICY says otherwise.
`--device cuda` runs all of them on a GPU, where there is no floor; shape E, windowed to fit, is meant for one.
The SAE libraries run at shape C where they are installed, CLT-Forge at all others where it can be imported.
`--loss-curve` trains ours and the dense transcoder from the same weights on the same activations of the bundled
subject, and prints Σ_t ‖y_t − m̂_t‖² / Var(y_t) of both.
"""

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read by OpenMP as PyTorch loads it

import numpy as np
import torch
from torch.nn import functional

from floor import Floor
from peers import DenseCLT, Ours, fve_loss, peers

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Shape:
    n_layers: int
    d: int
    n_features: int
    k: int
    window: int = 64

    def targets(self, source: int) -> int:
        """Layers that one layer's features write to."""
        return min(self.window, self.n_layers - source)


SHAPES = {
    "A": Shape(6, 320, 3200, 16),
    "B": Shape(12, 256, 2048, 16),
    "C": Shape(1, 512, 8192, 32),
    "D": Shape(12, 480, 4800, 24),
    "E": Shape(33, 1280, 16384, 64, window=4),
    "molm": Shape(6, 192, 1536, 24),
}


def seconds(clock, function, *args) -> float:
    started = clock()
    function(*args)
    return clock() - started


def synchronised() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


def measure(shape: Shape, tokens: int, dtype: torch.dtype, rounds: int, rescore: bool, clock, with_peers: bool) -> dict:
    """On PyTorch's default device."""
    torch.manual_seed(0)
    x = torch.randn(shape.n_layers, tokens, shape.d)
    y = x.clone()
    ours = Ours(shape, dtype, rescore)
    floor = Floor(shape, tokens, dtype) if x.device.type == "cpu" else None
    others, missing = peers(shape, dtype) if with_peers else ([], {})
    times: dict[str, list[float]] = {p.name: [] for p in (ours, *others)}
    floors = []
    for round_ in range(-2, rounds):  # two rounds to warm up
        for trainer in (ours, *others):
            spent = seconds(clock, trainer.step, x, y)
            if round_ >= 0:
                times[trainer.name].append(spent)
        if floor is not None:
            spent = floor(clock)
            if round_ >= 0:
                floors.append(spent)
    mine = np.asarray(times.pop(ours.name))
    result: dict = {"ours_ms": 1e3 * np.median(mine), "ours_min_ms": 1e3 * mine.min()}
    if floors:
        total, parts = np.sum(floors, axis=1), 1e3 * np.median(floors, axis=0)
        result |= {"floor_ms": 1e3 * np.median(total), "floor_fraction": float(np.median(total / mine))}
        result["floor_parts_ms"] = dict(zip(("encode", "adam", "gathers"), parts, strict=True))
    result["peers"] = {}
    for name, spent in times.items():
        ratio = np.asarray(spent) / mine
        row = {"ms": 1e3 * np.median(spent), "ratio": np.median(ratio)}
        result["peers"][name] = row | {"ratio_min": ratio.min(), "ratio_max": ratio.max()}
    result["peers"] |= {name: {"missing": why} for name, why in missing.items()}
    return result


def mlp_rows(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """MLP inputs and outputs `[layers, n, d]` of the bundled subject, tokens in random order."""
    from isotrace import load_subject
    from isotrace.activations.harvest import Corpus, masked_batches, mlp_activations

    subject = load_subject("bundled:molm")
    rings = ["c1ccccc1", "C1CCCCC1", "c1ccncc1", "C1CCNCC1", "c1ccoc1", "c1cc[nH]c1", "C1COCCN1", "c1ccsc1"]
    chains = ["CC", "CCO", "CC(=O)N", "COC(=O)", "NS(=O)(=O)", "CCN(C)", "OC", "FC(F)(F)", "CC#N", "ClC", "BrC"]
    smiles = [
        a + b.replace("1", "2") + c for a in chains for b in rings for c in ("", "C", "O", "N", "C(=O)O", "Cl", "F")
    ]
    x, y = [], []
    for _, batch, _ in masked_batches(subject, Corpus.of(subject, smiles), 1024, 0.15, 0):
        got = mlp_activations(subject, batch)
        x.append(got[0].flatten(1, 2))
        y.append(got[1].flatten(1, 2))
        if sum(part.shape[1] for part in x) >= n:
            break
    x, y = torch.cat(x, 1), torch.cat(y, 1)
    order = torch.randperm(x.shape[1])[:n]
    return x[:, order], y[:, order]


def activations(batches: int, tokens: int) -> tuple[list, list]:
    """`mlp_rows` in batches: inputs layer-normalised, as the dense transcoder does, outputs scaled to unit variance per
    layer."""
    x, y = mlp_rows(batches * tokens)
    x = functional.layer_norm(x, x.shape[-1:])
    y = (y - y.mean(1, keepdim=True)) / y.std((1, 2), keepdim=True)
    return list(x.split(tokens, 1)), list(y.split(tokens, 1))


def loss_curve(tokens: int, dtype: torch.dtype, steps: int, rescore: bool) -> list[dict]:
    torch.manual_seed(0)
    shape, n_batches = SHAPES["molm"], 16
    x, y = activations(n_batches, tokens)
    ours, dense = Ours(shape, dtype, rescore), DenseCLT(shape, dtype)
    with torch.no_grad():
        for mine, theirs in zip(ours.W_enc, dense.W_enc, strict=True):
            theirs.copy_(mine)
        for (source, target), theirs in zip(dense.pairs, dense.W_dec, strict=True):
            theirs.copy_(ours.W_dec[source][:, (target - source) * shape.d :][:, : shape.d])
    rows = []
    for step in range(steps + 1):
        at = step % n_batches
        if step % max(1, steps // 10) == 0:
            with torch.no_grad():
                loss = {t.name: fve_loss(y[at], t.forward(x[at])).item() for t in (ours, dense)}
            rows.append({"step": step, "tokens": step * tokens, **loss})
        ours.step(x[at], y[at])
        dense.step(x[at], y[at])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="A")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rescore", action="store_true", help="float32 results from a bfloat16 product")
    parser.add_argument("--cpu-time", action="store_true", help="processor time: for one thread on a busy machine")
    parser.add_argument("--no-peers", action="store_true", help="ours and the floor only")
    parser.add_argument("--loss-curve", action="store_true")
    parser.add_argument("--steps", type=int, default=200, help="of the loss curve")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.cpu_time and args.threads > 1:
        parser.error("--cpu-time adds up over threads: use it with --threads 1")
    torch.set_num_threads(args.threads)
    torch.set_default_device(args.device)
    dtype = DTYPES[args.dtype]
    if args.loss_curve:
        rows = loss_curve(args.tokens, dtype, args.steps, args.rescore)
        print(json.dumps(rows) if args.json else "\n".join(str(row) for row in rows))
        return
    result = {"shape": args.shape, **asdict(SHAPES[args.shape]), "tokens": args.tokens, "threads": args.threads}
    result["omp_wait_policy"] = os.environ["OMP_WAIT_POLICY"]
    result |= {"dtype": args.dtype, "rounds": args.rounds, "rescore": args.rescore, "torch": torch.__version__}
    on_gpu = torch.get_default_device().type == "cuda"
    clock = synchronised if on_gpu else time.process_time if args.cpu_time else time.perf_counter
    result |= {"clock": clock.__name__, "device": torch.cuda.get_device_name() if on_gpu else "cpu"}
    result |= measure(SHAPES[args.shape], args.tokens, dtype, args.rounds, args.rescore, clock, not args.no_peers)
    if args.json:
        print(json.dumps(result, default=float))
        return
    print(f"{args.shape} {args.dtype} {args.tokens} tokens: ours {result['ours_ms']:.1f} ms")
    if "floor_ms" in result:
        parts = ", ".join(f"{name} {ms:.0f}" for name, ms in result["floor_parts_ms"].items())
        print(f"{'floor':>20}: {result['floor_ms']:.0f} ms ({parts}), {result['floor_fraction']:.0%} of ours")
    for name, row in result["peers"].items():
        if "missing" in row:
            print(f"{name:>20}: {row['missing']}")
        else:
            span = f"({row['ratio_min']:.1f}–{row['ratio_max']:.1f})"
            print(f"{name:>20}: {row['ms']:.0f} ms, {row['ratio']:.1f}× ours {span}")


if __name__ == "__main__":
    main()
