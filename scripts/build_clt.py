"""Train and evaluate the bundled cross-layer transcoder. Resumable: run the same command again.

    python scripts/build_clt.py --work build/molm --out src/isotrace/assets/molm-clt

1. train     on randomised spellings of the subject's own training molecules
2. evaluate  fidelity on held-out molecules, beside controls and by probes read from the replaced stream: about/fidelity
             and about/card on its shelf

`build_atlases.py molm` then names its features: about/names.
"""

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rdkit import Chem, RDLogger

from build_probes import PROPERTIES, TASKS
from isotrace.activations.harvest import Corpus
from isotrace.base.identity import identity
from isotrace.datasets.tasks import Example
from isotrace.dictionaries.build import configure
from isotrace.dictionaries.dictionary import Dictionary
from isotrace.dictionaries.replacement import replaced_hidden
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary
from isotrace.dictionaries.shelf import Part, put, shelf_of
from isotrace.evaluation.comparison import compare
from isotrace.probing.states import pooled_states
from isotrace.stats.bootstrap import bootstrap_weights, interval
from isotrace.stats.metrics import METRICS
from isotrace.subjects.probe import load_probe
from isotrace.subjects.subject import Batch, Subject, load_subject
from isotrace.training.config import TrainingConfig
from isotrace.training.loop import train_dictionary

RDLogger.DisableLog("rdApp.*")


def spelled(smiles: list[str], seed: int) -> list[str]:
    """A randomised spelling of each molecule."""
    rng, result = random.Random(seed), []
    for text in smiles:
        mol = Chem.MolFromSmiles(text)
        root = rng.randrange(mol.GetNumAtoms())
        result.append(Chem.MolToSmiles(mol, doRandom=True, canonical=False, rootedAtAtom=root))
    return result


def train(args: argparse.Namespace, subject: Subject) -> None:
    config = configure(
        subject, "crosslayer", activation=args.activation, n_features=args.features, k=args.k, window=args.window
    )
    training = TrainingConfig(
        tokens=args.tokens, finetune_tokens=args.finetune_tokens, learning_rate=args.learning_rate, dtype="bfloat16"
    )
    corpus = Corpus.of(subject, spelled((args.work / "corpus.txt").read_text().splitlines()[: args.molecules], 0))
    log, started, count = (args.work / "clt.jsonl").open("a"), time.time(), 0

    def on_step(record: dict) -> None:
        nonlocal count
        count += 1
        if count % 25 == 0:
            log.write(json.dumps(record | {"seconds": round(time.time() - started)}) + "\n")
            log.flush()

    dictionary = train_dictionary(subject, corpus, config, training, args.work / "clt.pt", on_step)
    summary = {
        "config": asdict(training),
        "molecules": len(corpus.ids),
        "corpus": "training part of the subject's corpus",
    }
    save_dictionary(dictionary, args.out, reference(subject), dtype=torch.float16, training=summary)


def held_out_part(subject: Subject, task: str, column: str) -> tuple[list[Example], np.ndarray]:
    """Molecules and labels of the test part of a bundled table, without those that the subject cannot take."""
    frame = pl.read_csv(TASKS / f"{task}.csv.gz", infer_schema=False).filter(pl.col("split_scaffold") == "test")
    labels = frame[column].replace({"BBB+": "1", "BBB-": "0"}).cast(pl.Float64)
    examples, y = [], []
    for text, label in zip(frame["smiles"], labels, strict=True):
        ids, _, refusal = subject.tokenized([text])[0]
        if Chem.MolFromSmiles(text) is not None and refusal is None:
            examples.append(Example(len(examples), text, np.asarray(ids), "", label))
            y.append(label)
    return examples, np.asarray(y)


def probes_replaced(subject: Subject, dictionary: Dictionary) -> dict[str, Any]:
    """What the bundled probes say of the test parts of their tables, of the subject and with every MLP replaced."""
    found = {}
    for name, (table, column, *_) in PROPERTIES.items():
        probe, _ = load_probe(subject, name)
        examples, y = held_out_part(subject, table, column)
        reads, metric = probe.config.layers, "rmse" if probe.task == "regression" else "auroc"
        weights = np.concatenate([np.ones((1, len(y))), bootstrap_weights(len(y), 1_000, 0)])
        streams = {"subject": None, "replaced": partial(replaced, subject, dictionary, reads)}
        found[name] = {}
        for stream, hidden in streams.items():
            x = pooled_states(subject, examples, reads, probe.config.pool, hidden=hidden)
            draws = METRICS[metric](probe.value(torch.from_numpy(x)).numpy(), y, weights)
            found[name][stream] = {metric: {"value": float(draws[0]), "ci": list(interval(draws[1:]))}}
    return found


def replaced(subject: Subject, dictionary: Dictionary, reads: Sequence[int], batch: Batch) -> torch.Tensor:
    return replaced_hidden(subject, dictionary, batch, "free_running", reads=reads)


def held_out(args: argparse.Namespace) -> list[str]:
    lines = (args.work / "heldout.txt").read_text().splitlines()
    return random.Random(1).sample(lines, args.evaluate)


def measure(args: argparse.Namespace, subject: Subject) -> None:
    dictionary = load_dictionary(args.out, subject)
    evaluation = compare(subject, {"bundled:molm-clt": dictionary}, held_out(args), controls=False).to_dict()
    beside = compare(subject, {"molm-clt": dictionary}, held_out(args)).to_dict()
    card = {
        "probes_free_running": probes_replaced(subject, dictionary),
        "beside_controls": {
            one["name"]: {key: one[key] for key in ("free_running", "teacher_forced", "fve", "l0", "paired")}
            for one in (*beside["dictionaries"], *beside["controls"])
            if "free_running" in one
        },
        "dead_in_training_statistics": float((dictionary.density == 0).float().mean()),
    }
    for part, content in (("fidelity", evaluation), ("card", card)):
        put(part, args.out, identity(dictionary), Part(content, {}))
    print(json.dumps(evaluation | card))


def measure_probes(args: argparse.Namespace, subject: Subject) -> None:
    """The probes alone, into the card that is there."""
    dictionary = load_dictionary(args.out, subject)
    card = shelf_of(dictionary).card | {"probes_free_running": probes_replaced(subject, dictionary)}
    put("card", args.out, identity(dictionary), Part(card, {}))
    print(json.dumps(card["probes_free_running"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/molm"))
    parser.add_argument("--subject", default="src/isotrace/assets/molm")
    parser.add_argument("--out", type=Path, default=Path("src/isotrace/assets/molm-clt"))
    parser.add_argument("--features", type=int, default=1_536)
    parser.add_argument("--k", type=int, default=24)
    parser.add_argument("--activation", default="topk")
    parser.add_argument("--window", type=int, default=6)
    parser.add_argument("--learning-rate", type=float, default=1.6e-3)
    parser.add_argument("--tokens", type=int, default=6_000_000)
    parser.add_argument("--finetune-tokens", type=int, default=600_000)
    parser.add_argument("--molecules", type=int, default=160_000)
    parser.add_argument("--evaluate", type=int, default=1_000)
    parser.add_argument("--only", choices=("train", "evaluate", "probes"), help="probes: those again, in the card")
    args = parser.parse_args()
    subject = load_subject(args.subject, domain="molecule")
    stages = {"train": train, "evaluate": measure, "probes": measure_probes}
    for name, stage in stages.items():
        if args.only == name or (args.only is None and name != "probes"):  # which evaluate measures too
            stage(args, subject)


if __name__ == "__main__":
    main()
