"""CSV, TSV and Parquet files, and frames with every kind of column."""

import csv
import datetime
import decimal
import gzip
import io
import pathlib
import uuid
from random import Random

import numpy as np
import polars as pl
from odd import MISSING, PROTEINS, REACTIONS, SMILES, Case, damaged, text

COLUMNS = [
    "name",
    "ID",
    "y",
    "index",
    "input_index",
    "original",
    "notes",
    "größe",
    "a b",
    "",
    "x,y",
    'q"q',
    "input_name",
    "group",
]
OBJECTS = [
    lambda i: uuid.UUID(int=i), lambda i: pathlib.PurePosixPath(f"a/{i}"), lambda i: datetime.date(2024, 1, i + 1),
    lambda i: decimal.Decimal(i), lambda i: 2**70 + i, lambda i: b"\xff%d" % i, lambda i: complex(i, 1),
    lambda i: [i, i], lambda i: {"a": i}, lambda i: datetime.timedelta(i), lambda i: None, lambda i: (i,),
    lambda i: {i}, lambda i: i if i % 2 else str(i), lambda i: float("nan"), datetime.time, lambda i: float("inf"),
    lambda i: bool(i % 2), lambda i: object, int, str, float, lambda i: np.float32(i), lambda i: np.str_(i),
    lambda i: np.datetime64(i, "D"),
]  # fmt: skip


def _rows(rng: Random, n: int, no: str):
    """(sequences, right, wrong); none of the characters `no` in any."""
    known = rng.choice([SMILES, REACTIONS, PROTEINS])
    cells, right, wrong = [], {}, set()
    for i in range(n):
        kind = rng.random()
        if kind < 0.6:
            cells.append(rng.choice(known))
            right[i] = (cells[-1], {})
        elif kind < 0.8:
            cells.append(rng.choice(MISSING))
            wrong.add(i)
        else:
            cells.append("".join(x for x in text(rng) if x not in no))
    return cells, right, wrong


def table(rng: Random) -> Case:
    """Written as a program does, or damaged. In TSV nothing is quoted, so that no cell holds a tab or a line end."""
    kind = rng.choice(["csv", "tsv", "csv", "semicolon"])
    no = "\t\r\n" if kind == "tsv" else "\0"
    n = rng.randrange(1, 9)
    cells, right, wrong = _rows(rng, n, no + "\r\n")
    names = [x for x in rng.sample(COLUMNS, rng.randrange(0, 5)) if kind != "tsv" or '"' not in x]
    if kind == "semicolon":
        names = [name for name in names if "," not in name] or ["y"]
    others = {
        x: ["".join(c for c in rng.choice([text(rng), str(i), "", "NA"]) if c not in no) for i in range(n)]
        for x in names
    }
    head = rng.choice(["smiles", "SMILES", "sequence", "Sequence"])
    place = rng.randrange(len(names) + 1)
    heads = [*names[:place], head, *names[place:]]
    records = [
        [*(others[x][i] for x in names[:place]), cells[i], *(others[x][i] for x in names[place:])] for i in range(n)
    ]
    end = rng.choice(["\n", "\r\n"])
    if kind == "tsv":
        content = "".join("\t".join(record) + end for record in [heads, *records])
        blank = {i for i, record in enumerate(records) if record == [""]}
    else:
        buffer = io.StringIO()
        quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        mark = ";" if kind == "semicolon" else ","
        csv.writer(buffer, delimiter=mark, lineterminator=end, quoting=quoting).writerows([heads, *records])
        content, blank = buffer.getvalue(), set()
    while n - 1 in blank:  # blank lines at the end are no rows
        n -= 1
        wrong.discard(n)
    data = content.encode(rng.choice(["utf-8", "utf-8", "utf-8-sig", "utf-16"]))
    name = "a.tsv" if kind == "tsv" else "a.csv"
    if rng.random() < 0.3:
        return Case(name, damaged(data, rng), None)
    if rng.random() < 0.2:
        data = gzip.compress(data)
        name += ".gz"
        if rng.random() < 0.5:
            return Case(name, damaged(data, rng), None)
    return Case(name, data, n, right, wrong)


def frame(rng: Random) -> tuple[pl.DataFrame, dict, set]:
    n = rng.randrange(1, 9)
    cells, right, wrong = _rows(rng, n, "")
    given = [pl.Series("smiles", cells, dtype=pl.String)]
    for name in rng.sample(COLUMNS, rng.randrange(0, 6)):
        made = (
            [rng.choice(OBJECTS)(i % 20) for i in range(n)]
            if rng.random() < 0.3
            else [*map(rng.choice(OBJECTS), range(n))]
        )
        given.append(pl.Series(name, made, dtype=pl.Object))
        if rng.random() < 0.6:
            try:
                given[-1] = pl.Series(name, made, strict=True)
            except Exception:  # whatever polars has against it: then it stays a column of objects
                continue
    rng.shuffle(given)
    return pl.DataFrame(given), right, wrong


def parquet(rng: Random) -> Case:
    data, right, wrong = frame(rng)
    data = data.select(name for name, dtype in data.schema.items() if "Object" not in str(dtype))
    buffer = io.BytesIO()
    try:
        data.write_parquet(buffer)
    except Exception:  # a type that Parquet has not
        buffer = io.BytesIO()
        data.select("smiles").write_parquet(buffer)
    content = buffer.getvalue()
    if rng.random() < 0.3:
        return Case("a.parquet", damaged(content, rng), None)
    return Case("a.parquet", content, data.height, right, wrong)
