"""Write the concept tables of the molecule domain from data: which environments and structural alerts are kept.

    python scripts/build_concepts.py DATA

`DATA` holds `moleculenet/`, `moses_sample/` and `structural_alerts/` as described in docs/bundled.md. Both tables are
chosen by how many of the reference molecules (every 8th row of MoleculeNet, every 5th of MOSES test) have them:
environments.csv keeps the 60 most frequent of radius 1 and the 40 most frequent of radius 2; alerts.csv keeps the 60
most frequent alerts that are one connected pattern, no window of a chain, and count from the first match on.
"""

import argparse
import csv
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import polars as pl
from rdkit import Chem, rdBase

from isotrace.domains.molecule.vocabulary.environments import environments
from isotrace.domains.molecule.vocabulary.patterns import Patterns

OUT = Path(__file__).parents[1] / "src/isotrace/domains/molecule/vocabulary"
KEPT = {1: 60, 2: 40}
ALERTS = 60
# Alerts of chains and polycycles match once per window along them, thousands of times in a large molecule.
WINDOWS = ("long_chain", "polycyclic_systems")
# The MOSES filters carry numbers for names.
MCF = {
    "MCF1": "unsaturated nitrile",
    "MCF2": "unsaturated sulfone",
    "MCF3": "unsaturated amide",
    "MCF4": "primary alkyl halide",
    "MCF5": "epoxide",
    "MCF6": "isocyanate",
    "MCF7": "aldehyde",
    "MCF8": "acyclic imine",
    "MCF9": "aziridine",
    "MCF10": "acyclic hydrazine or azo",
    "MCF11": "azo",
    "MCF12": "furan with open positions",
    "MCF13": "thiophene with open positions",
    "MCF14": "halide on a heteroarene",
    "MCF15": "cycloheptatriene amine",
    "MCF16": "sulfur-sulfur bond",
    "MCF17": "three nitrogens in a row",
    "MCF18": "aminal",
    "MCF19": "acetal",
}


def reference(data: Path) -> Iterable[Chem.Mol]:
    texts = []
    for path in sorted((data / "moleculenet").glob("*.csv*")):
        texts += pl.read_csv(path, columns=["smiles"], infer_schema=False)["smiles"].to_list()[::8]
    texts += pl.read_csv(data / "moses_sample/test_10k.csv.gz")["smiles"].to_list()[::5]
    with rdBase.BlockLogs():
        yield from filter(None, map(Chem.MolFromSmiles, texts))


def alerts(path: Path) -> list[dict[str, str]]:
    rows, seen, used = [], set(), set()
    for row in pl.read_csv(path, infer_schema=False).fill_null("").iter_rows(named=True):
        counted = re.search(r"min_count=(\d+)", row["description"])
        if "." in row["smarts"] or row["smarts"] in used or (counted and counted[1] != "1"):
            continue
        if any(word in row["name"] for word in WINDOWS):
            continue
        used.add(row["smarts"])
        source = row["alert_set"].split("_")[0 if row["alert_set"] != "MOSES_MCF" else 1]
        plain = MCF.get(row["name"], re.sub(r"\(\d+\)$", "", row["name"])).replace("_", " ")
        name = f"alert {source} {' '.join(plain.split())}"
        rows.append({"name": f"{name} 2" if name in seen else name, "smarts": row["smarts"], "set": row["alert_set"]})
        seen.add(name)
    return rows


def write(name: str, rows: list[dict]) -> None:
    with (OUT / name).open("w", newline="", encoding="utf-8") as handle:
        writer = csv.DictWriter(handle, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{name}: {len(rows)} rows")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    data = parser.parse_args().data
    listed = alerts(data / "structural_alerts/structural_alerts.csv")
    patterns = Patterns((row["name"], row["smarts"]) for row in listed)
    found: Counter[str] = Counter()
    around: dict[int, Counter[str]] = {1: Counter(), 2: Counter()}
    n = 0
    for mol in reference(data):
        n += 1
        found.update({name for name, _ in patterns.matches(mol)})
        named = [pair for pair in environments(mol) if pair[0]]
        for radius in KEPT:
            around[radius].update({pair[radius - 1] for pair in named})
    print(f"{n} reference molecules")
    write(
        "environments.csv",
        [
            {"radius": radius, "environment": text, "molecules": count}
            for radius, top in KEPT.items()
            for text, count in sorted(around[radius].items(), key=lambda item: (-item[1], item[0]))[:top]
        ],
    )
    kept = {name for name, _ in sorted(found.items(), key=lambda item: (-item[1], item[0]))[:ALERTS]}
    write("alerts.csv", [row | {"molecules": found[row["name"]]} for row in listed if row["name"] in kept])


if __name__ == "__main__":
    main()
