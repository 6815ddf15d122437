"""A dictionary of AntiBERTy that is good enough to trace. Every step reads what the ones before it wrote.

    python scripts/build_antiberty.py DATA --work build/antiberty-clt --device cuda
        [--steps prepare,sample,choose,train,evaluate] [--candidate NAME] [--tokens N] [--finetune-tokens N]

1. prepare    train.txt, valid.txt, test.txt: antibody chains, no clone on two sides; tasks.csv: those with labels
2. sample     corpus.npz: the training chains, and chains that the subject itself makes of them
3. choose     every candidate shortly trained and measured on valid.txt: choose.json
4. train      one candidate, long, then inside the free-running subject: WORK/NAME
5. evaluate   on test.txt, beside controls: WORK/NAME-evaluation

DATA holds antibodies/sabdab_paratope.csv and antibodies/nanobody_antigen_interfaces.csv.gz. Some 1,700 known chains are
few to train on, so chains of the subject's own are added: start at a training chain, mask a fifth of it, fill each
masked residue by a draw from what the subject predicts there, and again. The draws of one round do not see each other:
such chains are like natural ones where the subject is sure, and only as plausible as independent draws elsewhere. No
dictionary is ever measured on one. docs/studies.md has what came out.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from isotrace.activations.harvest import Corpus, Plan
from isotrace.base.errors import InputError
from isotrace.base.settings import child_seed
from isotrace.dictionaries.build import configure
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.saving import reference, save_dictionary
from isotrace.domains.protein.sequence import STANDARD
from isotrace.evaluation.fidelity import measure, summarise
from isotrace.stats.bootstrap import bootstrap_weights
from isotrace.subjects.subject import Subject, load_subject
from isotrace.training.config import StreamConfig, TrainingConfig
from isotrace.training.loop import subject_stream, train
from isotrace.training.trainer import Job
from isotrace.training.world import World

SUBJECT = "pypi:antiberty/AntiBERTy_md_smooth"
COPIES, ROUNDS, KEPT, RATE = 14, 8, (2, 5, 8), 0.2  # chains per training chain, rounds, those kept, share refilled
REAL = 12  # times each known chain stands in the corpus
BATCH, MASKS = 4_096, 3
STREAM = StreamConfig(block_tokens=131_072, harvest_tokens=16_384)
CHOOSE = {"tokens": 1_000_000, "finetune_tokens": 100_000}
CANDIDATES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # name: (dictionary, training)
    "clt-k32": ({"n_features": 2_048, "k": 32, "window": 3}, {}),
    "clt-k64": ({"n_features": 2_048, "k": 64, "window": 3}, {}),
    "clt-k128": ({"n_features": 2_048, "k": 128, "window": 3}, {}),
    "layer-k32": ({"n_features": 3_584, "k": 32, "window": 1}, {}),
    "layer-k64": ({"n_features": 3_584, "k": 64, "window": 1}, {}),
    "clt-k32-slow": ({"n_features": 2_048, "k": 32, "window": 3}, {"learning_rate": 8e-4}),
}


def prepare(data: Path, work: Path) -> None:
    """Clones are those of the antibody domain, over all chains together; SAbDab's own valid and test parts are held
    out, and of the training part every chain of a clone that is in them."""
    import polars as pl

    from isotrace.domains.protein.clones import clone_groups
    from isotrace.domains.protein.numbering import number

    text: dict[str, Any] = {"infer_schema": False}
    chains = pl.read_csv(data / "antibodies/sabdab_paratope.csv", **text)
    nanobodies = pl.read_csv(data / "antibodies/nanobody_antigen_interfaces.csv.gz", **text)["seq_nanobody"]
    part = dict(zip(chains["sequence"], chains["split"], strict=True))
    part |= {s: "train" for s in nanobodies if s not in part}
    known, refused = {}, 0
    for sequence in sorted(part):
        try:
            known[sequence] = number(sequence)
        except InputError:
            refused += 1
    groups = dict(zip(known, clone_groups(list(known.values())), strict=True))
    of = {name: {groups[s] for s in known if part[s] == name} for name in ("valid", "test")}
    kept: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for sequence, group in groups.items():
        if group in of["test"]:
            kept["test"] += [sequence] if part[sequence] == "test" else []
        elif group in of["valid"]:
            kept["valid"] += [sequence] if part[sequence] == "valid" else []
        else:
            kept["train"].append(sequence)
    for name, members in kept.items():
        (work / f"{name}.txt").write_text("\n".join(members) + "\n")
    split = {sequence: name for name, members in kept.items() for sequence in members}
    family = pl.col("v_gene").str.extract(r"^(IG[HKL]V\d+)").alias("v_family")
    rows = chains.filter(pl.col("sequence").is_in(list(split))).select("sequence", "paratope", "chain", family)
    named = [pl.col("sequence").replace_strict(of).alias(name) for name, of in (("split", split), ("clone", groups))]
    rows.with_columns(named).write_csv(work / "tasks.csv")
    counts = {name: len(members) for name, members in kept.items()}
    print(json.dumps(counts | {"of": len(part), "no antibody": refused}))


def lines(work: Path, name: str) -> list[str]:
    return (work / f"{name}.txt").read_text().splitlines()


@torch.no_grad()
def refilled(
    subject: Subject, ids: torch.Tensor, letters: torch.Tensor, rate: float, generator: torch.Generator
) -> torch.Tensor:
    """`ids [n, tokens]`, no padding, with a share `rate` of what is not special drawn anew among the token ids
    `letters`, each from what the subject predicts there with all of them masked."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    chosen = (torch.rand(ids.shape, generator=generator).to(ids.device) < rate) & ~subject.special(ids)
    with torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.device.type == "cuda"):
        final = subject.hidden(ids.masked_fill(chosen, subject.mask_id), mask)
        logits = subject.head(final[chosen])[:, letters].float()
    noise = torch.rand(logits.shape, generator=generator).to(ids.device).clamp_min(1e-20)
    drawn = letters[(logits - (-noise.log()).log()).argmax(-1)]  # Gumbel: a draw from the softmax
    return ids.masked_scatter(chosen, drawn)


def sample(subject: Subject, known: Corpus, copies: int, letters: str = STANDARD) -> Corpus:
    """`known`, each chain `REAL` times, and `copies` times its refilled chains of the rounds `KEPT`: none of these
    twice, and none that is known."""
    residues = torch.tensor([subject.token_id(letter) for letter in letters], device=subject.device)
    kind, made = known.tokens.dtype, {}
    for copy in range(copies):
        generator = torch.Generator().manual_seed(child_seed(0, copy))
        for chosen in Plan(known.lengths, 2 * STREAM.harvest_tokens, copy).epoch(0):
            ids = known.batch(chosen).ids.to(subject.device)
            for number in range(1, ROUNDS + 1):
                ids = refilled(subject, ids, residues, RATE, generator)
                if number in KEPT:
                    made |= {row.tobytes(): row for row in ids.cpu().numpy().astype(kind)}
    rows = [row.astype(kind) for row in known.ids]
    for row in rows:
        made.pop(row.tobytes(), None)
    every = [*rows * REAL, *made.values()]
    return Corpus(np.concatenate(every), np.cumsum([0, *map(len, every)]), ())


def load_corpus(work: Path) -> Corpus:
    found = np.load(work / "corpus.npz")
    return Corpus(found["tokens"], found["offsets"], ())


def job(subject: Subject, name: str, **training: Any) -> Job:
    shape, own = CANDIDATES[name]
    usual = {"learning_rate": 1.6e-3, "batch_tokens": BATCH, "finetune_batch_tokens": BATCH, "dead_after": 500_000}
    usual |= {"finetune_learning_rate": 3e-4}
    return Job(name, configure(subject, "crosslayer", **shape), TrainingConfig(**usual | own | training))


def fit(subject: Subject, corpus: Corpus, jobs: Sequence[Job], work: Path, name: str) -> list[Dictionary]:
    """Logs every 25th step to WORK/NAME.jsonl; killed, it goes on from WORK/NAME.pt. On a GPU float32 products are
    those of TF32."""
    checkpoint, log, started, count = work / f"{name}.pt", (work / f"{name}.jsonl").open("a"), time.time(), 0

    def on_step(record: dict[str, Any]) -> None:
        nonlocal count
        count += 1
        if count % 25 == 0:
            log.write(json.dumps(record | {"seconds": round(time.time() - started, 1)}) + "\n")
            log.flush()

    source, precision = subject_stream(subject, corpus, jobs, STREAM, World()), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    made = train(source, jobs, checkpoint, on_step, subject=subject, corpus=corpus, checkpoint_tokens=2_000_000)
    torch.set_float32_matmul_precision(precision)
    checkpoint.unlink()
    return made


def recovered(subject: Subject, dictionaries: dict[str, Dictionary], texts: list[str]) -> dict[str, Any]:
    """What every dictionary keeps of the loss, each text masked `MASKS` times; intervals resample texts."""
    corpus = Corpus.of(subject, texts * MASKS)
    weights = np.tile(bootstrap_weights(len(texts), 200, 0), MASKS)
    found = measure(subject, [*dictionaries.values()], corpus, names=[*dictionaries], mask_rate=None, seed=0)
    scores = [summarise(one, weights) for one in found]
    keys = ("free_running", "teacher_forced", "fve", "l0")
    return {name: {key: one[key] for key in keys} for name, one in zip(dictionaries, scores, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", default="prepare,sample,train,evaluate")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--candidate", choices=CANDIDATES, default="layer-k32")
    parser.add_argument("--copies", type=int, default=COPIES)
    parser.add_argument("--tokens", type=int, default=8_000_000)
    parser.add_argument("--finetune-tokens", type=int, default=3_000_000)
    args = parser.parse_args()
    work, steps, out = args.work, args.steps.split(","), args.work / args.candidate
    work.mkdir(parents=True, exist_ok=True)
    if "prepare" in steps:
        prepare(args.data, work)
    subject = load_subject(SUBJECT, device=args.device)
    if "sample" in steps:
        found = sample(subject, Corpus.of(subject, lines(work, "train")), args.copies)
        np.savez_compressed(work / "corpus.npz", tokens=found.tokens, offsets=found.offsets)
    if "choose" in steps:
        made = fit(subject, load_corpus(work), [job(subject, name, **CHOOSE) for name in CANDIDATES], work, "choose")
        scores = recovered(subject, dict(zip(CANDIDATES, made, strict=True)), lines(work, "valid"))
        (work / "choose.json").write_text(json.dumps(scores, indent=1) + "\n")
    if "train" in steps:
        corpus = load_corpus(work)
        one = job(subject, args.candidate, tokens=args.tokens, finetune_tokens=args.finetune_tokens)
        made = fit(subject, corpus, [one], work, args.candidate)
        about = {"config": asdict(one.training), "sequences": len(corpus.ids), "tokens": len(corpus.tokens)}
        save_dictionary(made[0], out, reference(subject), dtype=torch.float16, training=about)
    if "evaluate" in steps:
        held = ["--data", str(work / "test.txt"), "--out", f"{out}-evaluation", "--overwrite"]
        subprocess.run([sys.executable, "-m", "isotrace", "evaluate", SUBJECT, str(out), *held], check=True)


if __name__ == "__main__":
    main()
