"""Lists of checkpoints and tasks for `isotrace transfer`, from the ladder and the data sets of molecules. Then

    python scripts/build_matrix.py DATA --ladder build/ladder --work build/matrix
    cd build/matrix
    isotrace transfer checkpoints.csv --tasks tasks.csv --domain molecule --corpus corpus.csv --out out

is the matrix of docs/transfer.md. Writes

    WORK/checkpoints.csv    of the ladder (see build_ladder.py) one untrained copy a size and every other step that is
                            there, and `bundled:molm`
    WORK/dictionaries/NAME  with --tokens a dictionary of each, all with as many features and active ones per token and
                            on the same tokens, of molecules that are in no task; resumable
    WORK/corpus.csv         500 other such molecules
    WORK/tasks.csv          eleven groups of tasks: those of MoleculeNet, the blood-brain barrier of B3DB, drug classes
    WORK/drug_class.csv     the four classes of drugs that have most molecules, one row a molecule
"""

import argparse
import csv
from pathlib import Path

import polars as pl
from rdkit import Chem, RDLogger

import isotrace
from build_ladder import seen

SIZES = ("0.06M", "0.25M", "0.83M", "2.8M")
TASKS = (
    ("bace", "moleculenet/bace.csv", "Class"),
    ("bbbp", "moleculenet/bbbp.csv", "p_np"),
    ("esol", "moleculenet/esol.csv", "measured_log_solubility_mol_per_l"),
    ("freesolv", "moleculenet/freesolv.csv", "hydration_free_energy_kcal_per_mol"),
    ("lipophilicity", "moleculenet/lipophilicity.csv", "label"),
    ("hiv", "moleculenet/hiv.csv.gz", "HIV_active"),
    ("qm8/E1", "moleculenet/qm8.csv.gz", "E1-CC2"),
    ("qm8/f1", "moleculenet/qm8.csv.gz", "f1-CC2"),
    ("sider/eye", "moleculenet/sider.csv", "Eye disorders"),
    ("sider/immune", "moleculenet/sider.csv", "Immune system disorders"),
    ("tox21/AhR", "moleculenet/tox21.csv.gz", "NR-AhR"),
    ("tox21/ARE", "moleculenet/tox21.csv.gz", "SR-ARE"),
    ("tox21/MMP", "moleculenet/tox21.csv.gz", "SR-MMP"),
    ("b3db/bbb", "b3db/b3db_classification.csv.gz", "bbb"),
    ("b3db/logBB", "b3db/b3db_regression.csv", "logBB"),
)
CLASSES = 4
FEATURES, ACTIVE, LEARNED_ON = 512, 16, 20_000
"""Of every dictionary: features a layer, active ones per token, molecules."""
COLUMNS = ("name", "source", "family", "tokens_seen", "dictionary", "untrained")

RDLogger.DisableLog("rdApp.*")


def checkpoints(ladder: Path) -> list[tuple[str, str, str, float]]:
    """(name, source, family, tokens seen); a family is a size with a corpus."""
    found = [("molm", "bundled:molm", "molm", float("nan"))]
    for size in SIZES:
        runs = sorted(path for path in ladder.glob(f"{size}-*") if path.is_dir())
        for run in runs:
            steps = sorted((int(path.name.removeprefix("step-")), path) for path in run.glob("step-*"))
            for step, path in steps:
                if step or run == runs[0]:  # the untrained copies of a size are one
                    name = f"{run.name}/{step}" if step else f"{size}/0"
                    found.append(
                        (name, str(path.resolve()), run.name if step else f"{size}-untrained", seen(run, step, 4_096))
                    )
    return found


def drug_classes(data: Path, work: Path) -> Path:
    table = pl.read_csv(data / "drug_classes" / "mesh12_single_class.csv").unique("canonical_smiles", keep="none")
    most = table["drug_class"].value_counts(sort=True).head(CLASSES)["drug_class"]
    table.filter(pl.col("drug_class").is_in(most.implode())).select("smiles", "drug_class").write_csv(
        work / "drug_class.csv"
    )
    return work / "drug_class.csv"


def molecules_of(tasks: list[tuple[str, str, str]]) -> set[str]:
    """Canonical SMILES."""
    known = set[str]()
    for file in {file for _, file, _ in tasks}:
        read = map(Chem.MolFromSmiles, pl.read_csv(file, infer_schema=False)["smiles"].drop_nulls())
        known |= {Chem.MolToSmiles(mol) for mol in read if mol is not None}
    return known


def general(data: Path, name: str, known: set[str]) -> list[str]:
    """Molecules of MOSES that are not `known` from a task."""
    texts = pl.read_csv(data / "moses_sample" / name)["smiles"].to_list()
    return [text for text in texts if Chem.CanonSmiles(text) not in known]


def with_dictionaries(rows: list[tuple[str, str, str, float]], args: argparse.Namespace, texts: list[str]) -> list:
    """`rows` with the dictionary of each and the name of its untrained copy."""
    made = []
    for name, source, family, tokens in rows:
        folder = args.work / "dictionaries" / name
        if not (folder / "dictionary.json").exists():
            isotrace.train(
                source, architecture="crosslayer", domain="molecule", data=texts[:LEARNED_ON], features=FEATURES,
                k=ACTIVE, tokens=args.tokens, out=folder, overwrite=True,
            )  # fmt: skip
            print(f"dictionary of {name}", flush=True)
        size = family.partition("-")[0]
        made.append((name, source, family, tokens, f"dictionaries/{name}", f"{size}/0" if size in SIZES else ""))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with moleculenet/, b3db/, drug_classes/")
    parser.add_argument("--ladder", type=Path, default=Path("build/ladder"))
    parser.add_argument("--work", type=Path, default=Path("build/matrix"))
    parser.add_argument("--tokens", type=int, default=0, help="of every dictionary; 0: no dictionaries")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    tasks = [(name, str((args.data / file).resolve()), label) for name, file, label in TASKS]
    tasks.append(("drug_class", str(drug_classes(args.data, args.work).resolve()), "drug_class"))
    known = molecules_of(tasks)
    pl.DataFrame({"smiles": general(args.data, "test_10k.csv.gz", known)[:500]}).write_csv(args.work / "corpus.csv")
    found = checkpoints(args.ladder)
    if args.tokens:
        found = with_dictionaries(found, args, general(args.data, "train_100k.csv.gz", known))
    for name, columns, rows in (
        ("checkpoints", COLUMNS[: len(found[0])], found),
        ("tasks", ("name", "file", "label"), tasks),
    ):
        with (args.work / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *rows])
        print(f"{len(rows)} {name}: {args.work / name}.csv")


if __name__ == "__main__":
    main()
