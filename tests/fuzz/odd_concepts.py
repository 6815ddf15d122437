"""Concept files: patterns and labels, well formed or not."""

import csv
import gzip
import io
from random import Random

from odd import MISSING, PROTEINS, SMILES, Case, damaged, text

KINDS = ["token", "class", "class-if-known", "value", "value-if-known"]
PATTERNS = [
    ("smarts", "[OX2H]"), ("smarts", "C#N"), ("regex", "C{1,2}"), ("regex", "(C|N)+"),
    ("prosite", "[AG]-x(4)-G-K-[ST]"), ("regex", "["), ("smarts", "[C"), ("prosite", "x("), ("motif", "C"),
    ("regex", "(a+)+$"),
]  # fmt: skip


def _written(records: list[list[str]], rng: Random) -> tuple[str, bytes]:
    mark = rng.choice([",", ",", "\t", ";"])
    buffer = io.StringIO()
    if mark == "\t":
        buffer.write(
            "".join("\t".join(x.translate({9: "_", 10: "_", 13: "_"}) for x in record) + "\n" for record in records)
        )
    else:
        csv.writer(buffer, delimiter=mark, lineterminator=rng.choice(["\n", "\r\n"])).writerows(records)
    content, name = (
        buffer.getvalue().encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"])),
        "c.tsv" if mark == "\t" else "c.csv",
    )
    return (f"{name}.gz", gzip.compress(content)) if rng.random() < 0.2 else (name, content)


def patterns(rng: Random) -> Case:
    """`n`: concepts that a file of good patterns gives, None where one may be refused."""
    good = rng.random() < 0.5
    chosen = [rng.choice(PATTERNS[:5] if good else PATTERNS) for _ in range(rng.randrange(1, 6))]
    names = [f"p{i}" if good or rng.random() < 0.8 else text(rng) for i in range(len(chosen))]
    head = ["name", "group", "kind", "pattern"]
    if not good and rng.random() < 0.2:
        head = rng.sample(head, rng.randrange(1, 5))
    name, content = _written([head, *([x, "g", *pair] for x, pair in zip(names, chosen, strict=True))], rng)
    if rng.random() < 0.3:
        return Case(name, damaged(content, rng), None)
    return Case(name, content, len(chosen) if good else None)


def labels(rng: Random) -> Case:
    """`right`: lines of sequences that stand once, with the number of a column `v` where it is one."""
    known = list(dict.fromkeys(rng.sample(SMILES + PROTEINS, rng.randrange(1, 8))))
    kinds = rng.sample(KINDS, rng.randrange(0, 3))
    columns = [("value-if-known:v", lambda i, x: rng.choice([str(i), "1.5", *MISSING, "0,5", ">3", "x"]))]
    columns += [
        (f"{kind}:{kind[0]}{k}", lambda i, x, kind=kind: _cell(kind, i, x, rng)) for k, kind in enumerate(kinds)
    ]
    records = [[x, *(cell(i, x) for _, cell in columns)] for i, x in enumerate(known)]
    right = {}
    for i, record in enumerate(records):
        if record[1] in (str(i), "1.5") and not kinds:
            right[i] = (record[0], {"v": float(record[1])})
    name, content = _written([["smiles", *(head for head, _ in columns)], *records], rng)
    if rng.random() < 0.3:
        return Case(name, damaged(content, rng), None)
    return Case(name, content, None, right)


def _cell(kind: str, i: int, x: str, rng: Random) -> str:
    if rng.random() < 0.3:
        return rng.choice([*MISSING, text(rng)])
    if kind == "token":
        return "".join(rng.choice("01.HE ") for _ in range(len(x) + rng.choice([0, 0, 0, 1])))
    return str(i) if kind.startswith("value") else rng.choice("01ab")
