"""Train the ladder: subjects of four sizes on corpora of three, each kept after six steps. Resumable: run it again.

    python scripts/build_ladder.py DATA --work build/ladder [--sizes 0.06M 0.25M] [--steps 2200]

The corpora are nested samples of that of `molm` (see build_molm.py), whose tokenizer and training they share: masked
language modelling on randomised SMILES, the same steps, tokens a step and schedule for all. `step-0` is the untrained
copy. A last run of each size, on the largest corpus, has its tokens in random order. Writes

    WORK/SIZE-CORPUS/step-N      a subject in the Hugging Face layout
    WORK/ladder.csv              subject, size, corpus, step, weights, tokens seen, masked loss on held-out molecules

A step is 4,096 tokens; 2,200 of them for all 16 runs are about three hours on two cores.
"""

import argparse
import csv
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

from build_molm import batches, mask_tokens, prepared, train, write_shard
from isotrace.base.files import write_whole

HELD_OUT = 5_000


@dataclass(frozen=True)
class Size:
    """`lr`: the smaller, the larger."""

    d_model: int
    layers: int
    lr: float


SIZES = {
    "0.06M": Size(32, 4, 6e-3), "0.25M": Size(64, 5, 4e-3), "0.83M": Size(128, 4, 3e-3), "2.8M": Size(192, 6, 2e-3),
}  # fmt: skip
CORPORA = {"10k": 10_000, "30k": 30_000, "100k": 100_000}
SHUFFLED = "shuffled"
KEPT = 6


def kept(steps: int) -> list[int]:
    """Of `steps` the last, its half, and so on, and 0."""
    return [0, *sorted(max(1, round(steps / 2**i)) for i in range(KEPT))]


def run(args: argparse.Namespace, tokenizer: PreTrainedTokenizerFast, corpus: list[str], name: str, size: Size) -> None:
    """One of the ladder, into WORK/`name`."""
    work, steps = args.work / name, kept(args.steps)
    if (work / f"step-{args.steps}").is_dir():
        return
    work.mkdir(parents=True, exist_ok=True)
    write_whole(work / "corpus.txt", "\n".join(corpus).encode())
    tokenizer.save_pretrained(work / "tokenizer")
    given = {"d_model": size.d_model, "layers": size.layers, "lr": size.lr, "seed": args.seed, "steps": args.steps}
    own = argparse.Namespace(**given, tokens=args.tokens, compile=args.compile)
    train(own, tokenizer, work, keep=steps, shuffled=name.endswith(SHUFFLED))
    shutil.rmtree(work / "shards", ignore_errors=True)
    (work / "checkpoint.pt").unlink(missing_ok=True)


@torch.no_grad()
def measured(folder: Path, shard: Path, tokenizer: PreTrainedTokenizerFast) -> tuple[int, float]:
    """(weights of a subject, nats a masked token of the held-out molecules, the same masks for all)."""
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    total, n = 0.0, 0
    for place, ids in enumerate(batches(shard, 4_096, 0)):
        inputs, chosen = mask_tokens(ids, tokenizer, torch.Generator().manual_seed(place))
        logits = model(inputs).logits[chosen]
        total += float(torch.nn.functional.cross_entropy(logits, ids[chosen], reduction="sum"))
        n += int(chosen.sum())
    return sum(p.numel() for p in model.parameters()), total / n


def seen(work: Path, step: int, tokens: int) -> int:
    """Tokens after `step`, from the log where it has it."""
    rows = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()] if step else []
    return next((row["tokens"] for row in rows if row["step"] == step), step * tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with moses_sample/, moleculenet/, b3db/, reactions/")
    parser.add_argument("--work", type=Path, default=Path("build/ladder"))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument("--corpora", nargs="+", choices=[*CORPORA, SHUFFLED], default=[*CORPORA, SHUFFLED])
    parser.add_argument("--steps", type=int, default=2_200)
    parser.add_argument("--tokens", type=int, default=4_096, help="tokens per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler")
    args = parser.parse_args()
    corpus, tokenizer = prepared(args.data, args.work)
    held = args.work / "heldout.npz"
    if not held.exists():
        write_shard((args.work / "heldout.txt").read_text().splitlines()[:HELD_OUT], tokenizer, 0, held)
    found, started = [], time.time()
    for size in args.sizes:
        for name in args.corpora:
            n = CORPORA.get(name, max(CORPORA.values()))
            run(args, tokenizer, corpus[:n], f"{size}-{name}", SIZES[size])
            print(f"{size} on {name}: {time.time() - started:.0f} s", flush=True)
    for size in args.sizes:
        for name in args.corpora:
            for step in kept(args.steps):
                folder = args.work / f"{size}-{name}" / f"step-{step}"
                n, loss = measured(folder, held, tokenizer)
                tokens = seen(folder.parent, step, args.tokens)
                found.append((f"{size}-{name}/step-{step}", size, name, step, n, tokens, round(loss, 4)))
    with (args.work / "ladder.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("subject", "size", "corpus", "step", "weights", "tokens", "masked_loss"), *found])


if __name__ == "__main__":
    main()
