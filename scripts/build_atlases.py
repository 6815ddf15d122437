"""Train a dictionary for a published subject, measure it, annotate it. Resumable: run the same command again.

    python scripts/build_atlases.py NAME DATA --work build/NAME [--steps prepare,train,evaluate,annotate,table]

NAME is molm, rxnfp or antiberty; DATA a folder with the data sets that docs/atlases.md lists.

1. prepare    text files of sequences to train on, to evaluate on and to annotate, and label files
2. train      the dictionary (molm ships one), in WORK/dictionary
3. evaluate   fidelity beside controls, in WORK/evaluation
4. annotate   isotrace annotate, in WORK/annotation
5. table      docs/atlases/NAME.md from what these wrote; the names on the shelf of the bundled dictionary of molm
"""

import argparse
import json
import random
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import polars as pl
import torch

import atlas_tables
from isotrace.activations.harvest import Corpus
from isotrace.dictionaries.build import configure
from isotrace.dictionaries.saving import load_dictionary, reference, save_dictionary
from isotrace.dictionaries.shelf import attach
from isotrace.subjects.subject import load_subject
from isotrace.training.config import TrainingConfig
from isotrace.training.loop import train_dictionary

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Recipe:
    """`tokens` to train on (0: the subject ships with its dictionary), `annotate` sequences, options of annotate."""

    subject: str
    dictionary: str | None
    features: int
    k: int
    window: int
    tokens: int
    annotate: int
    options: tuple[str, ...]


RECIPES = {
    "molm": Recipe("bundled:molm", "bundled:molm-clt", 0, 0, 0, 0, 3_000, ()),
    "rxnfp": Recipe(
        "pypi:rxnfp/bert_pretrained", None, 1_024, 32, 3, 1_500_000, 2_000,
        ("--concepts", "labels.csv", "--untrained-tokens", "200000"),
    ),
    "antiberty": Recipe(
        "pypi:antiberty/AntiBERTy_md_smooth", None, 1_024, 32, 3, 400_000, 900,
        ("--concepts", "labels.csv", "--untrained-tokens", "200000", "--no-effects"),
    ),
}  # fmt: skip


def prepare(name: str, data: Path, work: Path, recipe: Recipe) -> None:
    """WORK/train.txt, evaluate.smi, annotate.csv and labels.csv."""
    rng = random.Random(0)
    if name == "molm":
        held = pl.read_csv(data / "moses_sample/scaffold_test_5k.csv.gz")["smiles"].to_list()
        drugs = pl.read_csv(data / "b3db/b3db_classification.csv.gz")
        drugs = drugs.filter(pl.col("split_scaffold") == "test")["smiles"].to_list()
        rows = [*rng.sample(held, recipe.annotate - len(drugs)), *drugs]
        pl.DataFrame({"smiles": rows}).write_csv(work / "annotate.csv")
        (work / "evaluate.smi").write_text("\n".join(rng.sample(rows, 500)) + "\n")
    elif name == "rxnfp":
        table = pl.read_csv(data / "reactions/uspto50k_liu2017.csv.gz")
        table = table.with_columns(smiles=pl.col("reactants") + ">>" + pl.col("product")).unique("smiles", keep="none")
        table = table.sort("smiles")
        train = table.filter(pl.col("split") == "train")["smiles"].to_list()
        (work / "train.txt").write_text("\n".join(train) + "\n")
        rest = table.filter(pl.col("split") != "train").sample(fraction=1, shuffle=True, seed=0)
        chosen = rest.head(recipe.annotate)
        chosen.select("smiles").write_csv(work / "annotate.csv")
        chosen.select(
            "smiles",
            pl.col("rx_class_name").alias("class:reaction class"),
            pl.col("rxnmapper_mapped_rxn").alias("maps:mapped"),
        ).write_csv(work / "labels.csv")
        (work / "evaluate.smi").write_text("\n".join(rest["smiles"][-400:]) + "\n")
    else:
        text = {"infer_schema_length": 0}
        chains = pl.read_csv(data / "antibodies/sabdab_paratope.csv", **text)
        nanobodies = pl.read_csv(data / "antibodies/nanobody_antigen_interfaces.csv.gz", **text)["seq_nanobody"]
        train = chains.filter(pl.col("split") == "train")["sequence"].to_list()
        others = set(chains["sequence"]) - set(train)
        train += [s for s in sorted(set(nanobodies)) if len(s) >= 100 and s not in others]
        (work / "train.txt").write_text("\n".join(train) + "\n")
        family = pl.col("v_gene").str.extract(r"^(IG[HKL]V\d+)")
        chains.select("sequence").write_csv(work / "annotate.csv")
        chains.select(
            "sequence",
            pl.col("paratope").str.replace_all("0", ".").alias("token:paratope"),
            family.fill_null("other").alias("class:V family"),
        ).write_csv(work / "labels.csv")
        held = chains.filter(pl.col("split") != "train")["sequence"].to_list()
        (work / "evaluate.smi").write_text("\n".join(held) + "\n")


def train(work: Path, recipe: Recipe) -> None:
    subject = load_subject(recipe.subject)
    config = configure(
        subject, "crosslayer", activation="topk", n_features=recipe.features, k=recipe.k, window=recipe.window
    )
    training = TrainingConfig(tokens=recipe.tokens, learning_rate=1.6e-3, dead_after=100_000)
    lines = (work / "train.txt").read_text().splitlines()
    corpus = Corpus.of(subject, lines)
    log, started, count = (work / "train.jsonl").open("a"), time.time(), 0

    def on_step(record: dict) -> None:
        nonlocal count
        count += 1
        if count % 20 == 0:
            log.write(json.dumps(record | {"seconds": round(time.time() - started)}) + "\n")
            log.flush()

    dictionary = train_dictionary(subject, corpus, config, training, work / "checkpoint.pt", on_step)
    summary = {"config": asdict(training), "sequences": len(corpus.ids)}
    save_dictionary(dictionary, work / "dictionary", reference(subject), dtype=torch.float16, training=summary)


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "isotrace", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", default="prepare,train,evaluate,annotate,table")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    recipe, work, steps = RECIPES[args.name], args.work, args.steps.split(",")
    torch.set_num_threads(args.threads)
    work.mkdir(parents=True, exist_ok=True)
    dictionary = recipe.dictionary or str(work / "dictionary")
    if "prepare" in steps:
        prepare(args.name, args.data, work, recipe)
    if "train" in steps and recipe.dictionary is None:
        train(work, recipe)
    if "evaluate" in steps:
        run("evaluate", recipe.subject, dictionary, "--data", str(work / "evaluate.smi"), "--out",
            str(work / "evaluation"), "--overwrite")  # fmt: skip
    if "annotate" in steps:
        options = [str(work / o) if o.endswith(".csv") else o for o in recipe.options]
        run("annotate", recipe.subject, dictionary, "--data", str(work / "annotate.csv"), *options, "--out",
            str(work / "annotation"), "--overwrite")  # fmt: skip
    if "table" in steps:
        atlas_tables.write(args.name, work, ROOT / "docs" / "atlases")
        if args.name == "molm":
            attach("names", ROOT / "src/isotrace/assets/molm-clt", load_dictionary(dictionary), work / "annotation")


if __name__ == "__main__":
    main()
