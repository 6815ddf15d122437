"""Peak memory: of commands on a subject of 12 layers with long inputs, and of training from a stream.

    python benchmarks/memory.py commands [--architecture transcoder|crosslayer]... [--command trace]... [--folder DIR]
    python benchmarks/memory.py training [--tokens 10000000] [--data tests/data/heldout.smi] [--json]

`commands` makes a random subject (512 tokens, 12 layers, d 768) with random dictionaries of 16,384 features a layer, 32
active, and runs every command by itself: the largest resident set that the kernel saw of it (`ru_maxrss`). Numbers of
controls and of sequences are small; what is run at once is as with the usual ones. `--folder` keeps what was made.

`training` trains a small autoencoder at the first layer of the bundled subject, so that ten million tokens take
minutes, and prints the largest resident set size seen within every tenth of the run: it must not grow.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MIB = 2**20
LIMIT = 8 * 2**30
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
TOKENS, LAYERS, WIDTH, FEATURES, K = 512, 12, 768, 16_384, 32
ARCHITECTURES = ("transcoder", "crosslayer")


def sequence(seed: int) -> str:
    return "".join(random.Random(seed).choices(RESIDUES, k=TOKENS - 2))


def commands(folder: Path, architecture: str) -> dict[str, list[str]]:
    """The arguments of every command. Enough controls, nodes and sequences to fill every batch."""
    given = [str(folder / "subject"), str(folder / architecture)]
    table = ["--data", str(folder / "sequences.csv")]
    domain = ["--domain", "protein"]
    return {
        "evaluate": ["evaluate", *given, *table, *domain, "--bootstrap", "20"],
        "trace": ["trace", *given, sequence(99), *domain, "--target", "mask:40", "--nodes", "32", "--controls", "20",
                  "--spellings", "0"],
        "circuit": ["circuit", *given, *table, *domain, "--label", "y", "--sizes", "50,400", "--controls", "2",
                    "--bootstrap", "20"],
        # one that is trained on the untrained subject would need the memory of training
        "annotate": ["annotate", *given, *table, *domain, "--sources", "dictionary,neurons,random,token_identity",
                     "--permutations", "20", "--bootstrap", "20"],
    }  # fmt: skip


def make(folder: Path, architecture: str) -> None:
    """Subject, table and dictionary, where they are not there yet."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    from isotrace.dictionaries.build import build, configure
    from isotrace.dictionaries.saving import reference, save_dictionary
    from isotrace.subjects.subject import load_subject

    torch.manual_seed(0)
    if not (folder / "sequences.csv").is_file():
        special = ["<cls>", "<pad>", "<eos>", "<unk>", "<mask>"]
        words = {word: i for i, word in enumerate([*special, *RESIDUES])}
        backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        ends = [("<cls>", 0), ("<eos>", 2)]
        backend.post_processor = processors.TemplateProcessing(single="<cls> $A <eos>", special_tokens=ends)
        names = dict(zip(("cls", "pad", "eos", "unk", "mask"), special, strict=True))
        tokens = {f"{name}_token": word for name, word in names.items()}
        PreTrainedTokenizerFast(tokenizer_object=backend, **tokens).save_pretrained(folder / "subject")
        shape: dict[str, Any] = {"vocab_size": len(words), "hidden_size": WIDTH, "num_hidden_layers": LAYERS}
        config = BertConfig(**shape, pad_token_id=1, intermediate_size=4 * WIDTH, max_position_embeddings=TOKENS)
        BertForMaskedLM(config).save_pretrained(folder / "subject")
        rows = [f"{sequence(seed)},{seed % 2}" for seed in range(24)]
        (folder / "sequences.csv").write_text("\n".join(["sequence,y", *rows]) + "\n")
    if (folder / architecture).is_dir():
        return
    subject = load_subject(folder / "subject", domain="protein")
    config = configure(subject, architecture, n_features=FEATURES, k=K)
    dictionary = build(config, 0)
    with torch.no_grad():
        for weight in dictionary.W_dec:
            weight.normal_(0, 0.02)
        dictionary.density.uniform_(0.001, 0.01)
        dictionary.mean_activation.uniform_(0, 0.01)
    dictionary = dictionary.requires_grad_(False)
    save_dictionary(dictionary, folder / architecture, reference(subject), dtype=torch.bfloat16, training={})


def measured(arguments: list[str], log: Path) -> dict:
    """Of one process: its largest resident set in bytes and seconds. The parent must stay small, because the kernel
    counts what a process was before it began another program."""
    started = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(arguments, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    found = {"peak": usage.ru_maxrss * 1024, "seconds": time.monotonic() - started, "exit": process.returncode}
    if process.returncode:
        found["said"] = " ".join(log.read_text(errors="replace").split()[-60:])
    return found


def of_commands(args: argparse.Namespace) -> None:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(args.folder or scratch).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        for architecture in args.architecture or ARCHITECTURES:
            made = [sys.executable, __file__, "make", "--folder", str(folder), "--architecture", architecture]
            subprocess.run(made, check=True)
            for name, given in commands(folder, architecture).items():
                if args.command and name not in args.command:
                    continue
                run = [sys.executable, "-m", "isotrace", *given, "--out", f"{scratch}/{architecture}-{name}"]
                row = {"architecture": architecture, "command": name} | measured(run, folder / f"{name}.log")
                rows.append(row)
                if not args.json:
                    verdict = "ok" if not row["exit"] and row["peak"] < LIMIT else row.get("said", "too much")
                    peak = f"{row['peak'] / 2**30:.2f} GiB"
                    print(f"{architecture:>10} {name:>8}: {peak}, {row['seconds']:.0f} s, {verdict}", flush=True)
    if args.json:
        print(json.dumps(rows))


def of_training(args: argparse.Namespace) -> None:
    import psutil

    from isotrace.activations.harvest import Corpus
    from isotrace.datasets.inputs import read_inputs
    from isotrace.dictionaries.build import configure
    from isotrace.subjects.subject import load_subject
    from isotrace.training.config import StreamConfig, TrainingConfig
    from isotrace.training.loop import train_dictionary

    subject = load_subject("bundled:molm")
    corpus = Corpus.of(subject, read_inputs(args.data)[0]["sequence"].to_list())
    config = configure(subject, "sae", n_features=256, k=16, layers=(0,))
    training = TrainingConfig(tokens=args.tokens, batch_tokens=4_096)
    process, peaks = psutil.Process(), [0] * 10

    def on_step(record: dict) -> None:
        tenth = min(9, 10 * (record["tokens"] - training.batch_tokens) // args.tokens)
        peaks[tenth] = max(peaks[tenth], process.memory_info().rss)

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        train_dictionary(subject, corpus, config, training, checkpoint, on_step, StreamConfig())
    sizes = [round(peak / MIB) for peak in peaks]
    result = {"tokens": args.tokens, "peak_mib_by_tenth": sizes, "growth": sizes[-1] / sizes[1] - 1}
    if args.json:
        print(json.dumps(result))
    else:
        print(f"{args.tokens:,} tokens, peak MiB in each tenth: {' '.join(map(str, sizes))}")
        print(f"from the second tenth to the last: {result['growth']:+.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["commands", "training", "make"])
    parser.add_argument("--architecture", choices=ARCHITECTURES, action="append", help="commands: both by default")
    parser.add_argument("--command", choices=["evaluate", "trace", "circuit", "annotate"], action="append")
    parser.add_argument("--folder", help="commands: where subject and dictionaries are kept; default: nowhere")
    parser.add_argument("--tokens", type=int, default=10_000_000, help="training")
    parser.add_argument("--data", default="tests/data/heldout.smi", help="training")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.what == "make":
        make(Path(args.folder), args.architecture[0])
    else:
        {"commands": of_commands, "training": of_training}[args.what](args)


if __name__ == "__main__":
    main()
