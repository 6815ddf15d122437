"""Write the data sets of `src/isotrace/assets/tasks` from the folder of data sets.

    python scripts/build_tasks.py DATA

Rows are taken as they are; reactions are thinned to a fixed number per class and part of the split, so that the table
stays small. Origins and licences stand in the README beside the tables.
"""

import argparse
import gzip
from pathlib import Path

import polars as pl

TABLES = {
    "bbb": ("b3db/b3db_classification.csv.gz", ["smiles", "bbb", "murcko_scaffold", "split_scaffold"]),
    "esol": (
        "moleculenet/esol.csv",
        ["smiles", "measured_log_solubility_mol_per_l", "murcko_scaffold", "split_scaffold"],
    ),
    "bace": ("moleculenet/bace.csv", ["smiles", "Class", "pIC50", "murcko_scaffold", "split_scaffold"]),
    "antibodies": ("antibodies/sabdab_paratope.csv", ["pdb", "chain", "v_gene", "sequence", "paratope"]),
}
LOGD = (1.19576, 2.19628)
"""Standard deviation and mean that the origin's standardised labels were made with: labels are measured to 0.01, which
gives the first (the smallest step is 0.00836288), and lie between −1.5 and 4.5, which gives the second."""
PER_CLASS = {"train": 200, "valid": 60, "test": 60}


def reactions(data: Path) -> pl.DataFrame:
    frame = pl.read_csv(data / "reactions/uspto50k_liu2017.csv.gz", infer_schema=False)
    frame = frame.with_columns(reaction=pl.col("reactants") + ">>" + pl.col("product"))
    parts = [
        frame.filter((pl.col("split") == part) & (pl.col("rx_class") == name)).head(n)
        for part, n in PER_CLASS.items()
        for name in sorted(frame["rx_class"].unique(), key=int)
    ]
    columns = ["reaction", "rx_class", "rx_class_name", "rxnmapper_mapped_rxn", "rxnmapper_confidence", "split"]
    return pl.concat(parts).select(columns)


def lipophilicity(data: Path) -> pl.DataFrame:
    """logD in its own unit instead of the origin's standardised label."""
    frame = pl.read_csv(data / "moleculenet/lipophilicity.csv", infer_schema=False)
    size, mean = LOGD
    exact = pl.col("label").cast(pl.Float64) * size + mean
    frame = frame.with_columns(logD=exact.round(2) + 0.0)  # no minus before 0
    assert float((frame["logD"] - frame.select(exact.alias("x"))["x"]).abs().max()) < 1e-4  # pyright: ignore[reportArgumentType]
    return frame.select("smiles", "logD", "murcko_scaffold", "split_scaffold")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("src/isotrace/assets/tasks"))
    options = parser.parse_args()
    tables = {
        name: pl.read_csv(options.data / file, infer_schema=False).select(columns)
        for name, (file, columns) in TABLES.items()
    }
    tables |= {"reactions": reactions(options.data), "lipophilicity": lipophilicity(options.data)}
    for name, table in tables.items():
        # no time stamp in the header: the same data give the same bytes
        (options.out / f"{name}.csv.gz").write_bytes(gzip.compress(table.write_csv().encode(), mtime=0))
        print(f"{name}: {table.height} rows")


if __name__ == "__main__":
    main()
