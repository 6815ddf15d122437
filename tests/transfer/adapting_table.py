"""Molecules with properties that are simple to learn, for tests of adaptation."""

from itertools import product

import polars as pl

from isotrace.datasets.inputs import rejects_frame
from isotrace.domains.domain import domain_of
from isotrace.transfer.adapting.tasks import TaskTable, read_tasks

DOMAIN = domain_of("molecule")
_ALL = sorted(
    "".join(parts) for parts in product(("C", "N", "CC", "Cl"), ("C", "CC", "NC", "OC"), ("C", "O", "NC", "CCl"))
)
MOLECULES = [*{DOMAIN.same(text): text for text in _ALL}.values()]  # each written once


def frame() -> pl.DataFrame:
    """index, sequence, `number` (nitrogens less half the oxygens), `oxygen` (yes, no), `first` (class of the first
    atom), `site` (0/1 per atom: a nitrogen), `family` (groups)."""
    columns = {
        "sequence": MOLECULES,
        "number": [f"{text.count('N') - 0.5 * text.count('O') + 0.01 * i:.3f}" for i, text in enumerate(MOLECULES)],
        "oxygen": ["yes" if "O" in text else "no" for text in MOLECULES],
        "first": [text.replace("Cl", "X")[0] for text in MOLECULES],
        "site": ["".join(str(int(a == "N")) for a in text.replace("Cl", "X")) for text in MOLECULES],
        "family": [str(i % 12) for i in range(len(MOLECULES))],
    }
    return pl.DataFrame(columns).with_row_index("index").with_columns(pl.col("index").cast(pl.Int64))


def table(subject, *labels: str, rows: pl.DataFrame | None = None, **given) -> TaskTable:
    rows = frame() if rows is None else rows
    return read_tasks(subject, DOMAIN, rows, rejects_frame([]), labels, **{"group": "family"} | given)
