"""Peak memory of training from a stream, by how far the stream has run: it must not grow.

    python benchmarks/memory.py [--tokens 10000000] [--data tests/data/heldout.smi] [--json]

Trains a small autoencoder at the first layer of the bundled subject, so that ten million tokens take minutes, and
prints the largest resident set size seen within every tenth of the run.
"""

import argparse
import json
import tempfile
from pathlib import Path

import psutil

from isotrace.activations.harvest import Corpus
from isotrace.datasets.inputs import read_inputs
from isotrace.dictionaries.build import configure
from isotrace.subjects.subject import load_subject
from isotrace.training.config import StreamConfig, TrainingConfig
from isotrace.training.loop import train_dictionary

MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10_000_000)
    parser.add_argument("--data", default="tests/data/heldout.smi")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
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


if __name__ == "__main__":
    main()
