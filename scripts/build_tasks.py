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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("src/isotrace/assets/tasks"))
    options = parser.parse_args()
    tables = {
        name: pl.read_csv(options.data / file, infer_schema=False).select(columns)
        for name, (file, columns) in TABLES.items()
    }
    tables["reactions"] = reactions(options.data)
    for name, table in tables.items():
        # no time stamp in the header: the same data give the same bytes
        (options.out / f"{name}.csv.gz").write_bytes(gzip.compress(table.write_csv().encode(), mtime=0))
        print(f"{name}: {table.height} rows")


if __name__ == "__main__":
    main()
