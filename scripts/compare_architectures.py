"""Architectures and sparsity rules compared at equal width, k and tokens, three seeds each → docs/architectures.md.

    python scripts/compare_architectures.py --work build/molm [--tokens 400000] [--only recipe]

1. train     every dictionary from one stream of the bundled subject's activations, resumable
2. evaluate  fidelity on held-out molecules, free-running first → build/molm/architectures.json
3. write     the tables of docs/architectures.md between their markers
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from build_clt import spelled
from isotrace.activations.harvest import Corpus
from isotrace.dictionaries.build import configure
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary
from isotrace.evaluation.fidelity import evaluate
from isotrace.subjects.subject import Subject, load_subject
from isotrace.training.config import StreamConfig, TrainingConfig
from isotrace.training.loop import subject_stream, train
from isotrace.training.trainer import Job
from isotrace.training.world import World

FEATURES, K, SEEDS = 1_536, 24, (0, 1, 2)
STUDIES: dict[str, dict[str, dict[str, Any]]] = {
    "architectures": {
        "crosslayer, every later layer": {"architecture": "crosslayer"},
        "crosslayer, window 3": {"architecture": "crosslayer", "window": 3},
        "crosslayer, window 1 (per layer)": {"architecture": "crosslayer", "window": 1},
        "skip transcoder": {"architecture": "skip_transcoder"},
        "sae at mlp_out": {"architecture": "sae"},
    },
    "recipe": {
        f"{rule}, learning rate {rate:g}": {
            "architecture": "crosslayer",
            "activation": rule,
            "training": {"learning_rate": rate},
        }
        for rule in ("topk", "batchtopk")
        for rate in (4e-4, 8e-4, 1.6e-3)
    },
}


def jobs_of(subject: Subject, study: str, seeds: tuple[int, ...], tokens: int) -> list[Job]:
    jobs = []
    for name, given in STUDIES[study].items():
        shape = {"n_features": FEATURES, "k": K} | {
            k: v for k, v in given.items() if k not in ("training", "architecture")
        }
        config = configure(subject, given["architecture"], **shape)
        for seed in seeds:
            changes = given.get("training", {}) | {"seed": seed, "tokens": tokens, "dtype": "bfloat16"}
            jobs.append(Job(f"{name}/{seed}", config, TrainingConfig(dead_after=100_000, **changes)))
    return jobs


def trained(args: argparse.Namespace, subject: Subject, study: str, seeds: tuple[int, ...]) -> list[tuple[Job, Path]]:
    """(job, folder) of every dictionary of a study; those already saved are not trained again."""
    jobs = jobs_of(subject, study, seeds, args.tokens)
    root = args.work / f"{study}-{args.tokens}"
    folders = [root / job.name.replace("/", "-").replace(" ", "_") for job in jobs]
    if not all((folder / "dictionary.json").exists() for folder in folders):
        root.mkdir(parents=True, exist_ok=True)
        lines = (args.work / "corpus.txt").read_text().splitlines()
        corpus = Corpus.of(subject, spelled(lines[: args.molecules], 0))
        stream = subject_stream(subject, corpus, jobs, StreamConfig(), World())

        def on_step(record: dict[str, Any]) -> None:
            if record["step"] % 20 == 0:
                shown = {k: round(v, 4) for k, v in record.items() if isinstance(v, float)}
                print(record["job"], record["tokens"], shown, file=sys.stderr, flush=True)

        dictionaries = train(stream, jobs, root / "checkpoint.pt", on_step, checkpoint_tokens=10 * args.tokens)
        for folder, dictionary in zip(folders, dictionaries, strict=True):
            save_dictionary(
                dictionary, folder, reference(subject), dtype=torch.float32, training={"tokens": args.tokens}
            )
        (root / "checkpoint.pt").unlink()
    return list(zip(jobs, folders, strict=True))


def measure(args: argparse.Namespace, subject: Subject, study: str, seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    lines = (args.work / "heldout.txt").read_text().splitlines()
    sample = random.Random(3).sample(lines, args.evaluate)
    rows = []
    for job, folder in trained(args, subject, study, seeds):
        dictionary = load_dictionary(folder, subject)
        found = evaluate(subject, dictionary, sample)
        weights = sum(p.numel() for p in dictionary.parameters())
        name, seed = job.name.rsplit("/", 1)
        rows.append({"name": name, "seed": int(seed), "weights": weights} | found)
        print(name, seed, found["free_running"], file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    columns = ("dictionary", "free-running loss recovered", "KL", "top-1 agreement", "teacher-forced", "FVE", "L0")
    columns += ("dead", "weights")
    text = [f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"]
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]

        def shown(get, own=own, digits=4) -> str:
            values = [get(row) for row in own]
            spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
            return f"{np.mean(values):.{digits}f}{spread}"

        cells = [
            name,
            shown(lambda r: r["free_running"]["loss_recovered"]),
            shown(lambda r: r["free_running"]["kl"]),
            shown(lambda r: r["free_running"]["top1_agreement"], digits=3),
            shown(lambda r: r["teacher_forced"]["loss_recovered"]),
            shown(lambda r: float(np.mean(r["fve"])), digits=3),
            shown(lambda r: r["l0"], digits=1),
            shown(lambda r: 100 * r["dead_fraction"], digits=1) + " %",
            f"{own[0]['weights'] / 1e6:.1f} M",
        ]
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text)


def write(study: str, text: str) -> None:
    """Replace the table of `study` in docs/architectures.md."""
    page = Path("docs/architectures.md")
    start, stop = f"<!-- {study} -->\n", f"\n<!-- end of {study} -->"
    before, _, rest = page.read_text().partition(start)
    page.write_text(before + start + text + stop + rest.partition(stop)[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/molm"))
    parser.add_argument("--subject", default="bundled:molm")
    parser.add_argument("--tokens", type=int, default=400_000)
    parser.add_argument("--molecules", type=int, default=30_000)
    parser.add_argument("--evaluate", type=int, default=500)
    parser.add_argument("--only", choices=tuple(STUDIES))
    args = parser.parse_args()
    subject = load_subject(args.subject)
    for study in [args.only] if args.only else STUDIES:
        rows = measure(args, subject, study, SEEDS if study == "architectures" else SEEDS[:1])
        (args.work / f"{study}.json").write_text(json.dumps(rows, indent=1) + "\n")
        write(study, table(rows))


if __name__ == "__main__":
    main()
