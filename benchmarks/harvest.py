"""Harvesting activations against the plain way, in one process and in turns.

    python benchmarks/harvest.py [--subject bundled:molm] [--data FILE] [--sequences 1000] [--hookpoints all]
                                 [--batch-tokens 2048] [--rounds 7] [--threads 2] [--json]

The plain way: the sequences in the order of the file, 32 to a padded batch, through the model as transformers
loads it (its own attention kernel, head included) with one hook per hookpoint, padding dropped afterwards. Both
start from token ids and end with the same `[n_hookpoints, tokens, d_model]` float32 tensors, compared token by
token. `--data` is a file of one sequence per line (what follows a blank or comma is left out); `--hookpoints` is
`all` (MLP inputs and outputs), or a list with commas. The CPU ratio compares the CPU time of the process: with one
thread it is what a quiet machine's clock would show.
"""

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel

from isotrace.activations.harvest import Corpus, Plan, record, width
from isotrace.subjects.subject import Batch, Subject, load_subject

HELDOUT = Path(__file__).parents[1] / "tests" / "data" / "heldout.smi"


@torch.no_grad()
def plain(model: PreTrainedModel, subject: Subject, corpus: Corpus, hookpoints: list[str], size: int) -> torch.Tensor:
    seen: dict[str, torch.Tensor] = {}
    parts, handles, ids = [], [], corpus.ids
    for name in hookpoints:
        path, side = subject.family.hookpoint(name, subject.n_layers)
        module = model.get_submodule(path)
        if side == "input":
            hook = lambda _, args, name=name: seen.__setitem__(name, args[0])  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook))
        else:
            hook = lambda _, args, output, name=name: seen.__setitem__(name, output)  # noqa: E731
            handles.append(module.register_forward_hook(hook))
    for at in range(0, len(ids), size):
        rows = [torch.from_numpy(row) for row in ids[at : at + size]]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=subject.pad_id)
        mask = torch.arange(padded.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        model(input_ids=padded, attention_mask=mask.long())
        parts.append(torch.stack([seen[name][mask] for name in hookpoints]))
    for handle in handles:
        handle.remove()
    return torch.cat(parts, 1)


def planned(subject: Subject, corpus: Corpus, hookpoints: list[str], tokens: int) -> torch.Tensor:
    out = torch.empty(len(hookpoints), len(corpus.tokens), width(subject, hookpoints))
    for rows in Plan(corpus.lengths, tokens, seed=0).epoch(0):
        batch = corpus.batch(rows)
        places = torch.from_numpy(corpus.offsets[rows][:, None] + np.arange(batch.ids.shape[1])).flatten()

        def take(index: int, x: torch.Tensor, places: torch.Tensor = places) -> None:
            out[index].index_copy_(0, places, x.flatten(0, 1))

        record(subject, Batch(batch.ids, batch.mask, (), ()), hookpoints, take)
    return out


def timed(function, *args) -> tuple[np.ndarray, torch.Tensor]:
    """([wall, CPU] seconds, result)."""
    started = time.perf_counter(), time.process_time()
    result = function(*args)
    return np.array([time.perf_counter(), time.process_time()]) - started, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", default="bundled:molm")
    parser.add_argument("--data", type=Path, default=HELDOUT)
    parser.add_argument("--sequences", type=int, default=1_000)
    parser.add_argument("--hookpoints", default="all")
    parser.add_argument("--batch-tokens", type=int, default=2_048)
    parser.add_argument("--batch-sequences", type=int, default=32, help="of the plain way")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    subject = load_subject(args.subject)
    model = AutoModelForMaskedLM.from_pretrained(subject.files.folder, dtype=torch.float32).eval()
    lines = [re.split(r"[\s,]", line.strip())[0] for line in args.data.read_text().splitlines()]
    corpus = Corpus.of(subject, [line for line in lines if line][: args.sequences])
    names = [f"layers.{n}.mlp_{side}" for n in range(subject.n_layers) for side in ("in", "out")]
    hookpoints = names if args.hookpoints == "all" else args.hookpoints.split(",")
    times: dict[str, list[np.ndarray]] = {"plain": [], "planned": []}
    deviation = 0.0
    for number in range(args.rounds + 1):
        slow, expected = timed(plain, model, subject, corpus, hookpoints, args.batch_sequences)
        fast, found = timed(planned, subject, corpus, hookpoints, args.batch_tokens)
        if number:  # the first round warms up
            times["plain"].append(slow)
            times["planned"].append(fast)
        scale = expected.abs().amax((1, 2))
        deviation = max(deviation, float(((found - expected).abs().amax((1, 2)) / scale).max()))
    slow, fast = np.array(times["plain"]), np.array(times["planned"])  # [rounds, 2]
    ratio = slow / fast
    tokens, lengths = len(corpus.tokens), corpus.lengths
    widest = [lengths[at : at + args.batch_sequences] for at in range(0, len(lengths), args.batch_sequences)]
    result = {
        "subject": args.subject,
        "data": args.data.name,
        "sequences": len(corpus.ids),
        "tokens": tokens,
        "length_quartiles": np.percentile(lengths, [0, 25, 50, 75, 100]).tolist(),
        "padded_over_real": float(sum(part.max() * len(part) for part in widest) / tokens),
        "hookpoints": len(hookpoints),
        "threads": args.threads,
        "rounds": args.rounds,
        "plain_tokens_per_s": tokens / float(np.median(slow[:, 0])),
        "planned_tokens_per_s": tokens / float(np.median(fast[:, 0])),
        "ratio": float(np.median(ratio[:, 0])),
        "ratio_min": float(ratio[:, 0].min()),
        "ratio_max": float(ratio[:, 0].max()),
        "cpu_ratio": float(np.median(ratio[:, 1])),
        "cpu_ratio_min": float(ratio[:, 1].min()),
        "cpu_ratio_max": float(ratio[:, 1].max()),
        "deviation": deviation,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"{result['sequences']} sequences, {tokens} tokens, padded / real {result['padded_over_real']:.2f}")
    for way in ("plain", "planned"):
        print(f"{way:>8} {result[f'{way}_tokens_per_s']:10,.0f} tokens/s")
    for key in ("ratio", "cpu_ratio"):
        print(
            f"{key.replace('_', ' '):>9} {result[key]:.2f} ({result[f'{key}_min']:.2f} to {result[f'{key}_max']:.2f})"
        )
    print(f"largest deviation {deviation:.1e} of the hookpoint's largest magnitude")


if __name__ == "__main__":
    main()
