"""Tables of a task: labels, groups, parts and mutations as people fill them in."""

from random import Random

import polars as pl
from odd import MISSING, text

PEPTIDES = ["CNCCS", "NCSCC", "SSNCI", "INCSC", "CCNIS", "NNCSI", "SCINC", "ICSNN", "CC", "NSCI", "SCCNSI", "INNC"]
LABELS = {
    "class": ["a", "b", "A b"], "signs": ["+", "-"], "0/1": ["0", "1"], "number": ["0.5", "-1.25", "3", "1e-2"],
    "comma": ["0,5", "1,0"], "bound": [">10", "<0.5", "3.5"], "words": ["none", "mild", "severe"],
}  # fmt: skip


def task(rng: Random) -> tuple[pl.DataFrame, dict[str, str | None], set[int], set[int]]:
    """(rows, arguments of `prepare`, rows that must be examples if any are, rows that must not be)."""
    n = rng.randrange(6, 30)
    texts = [rng.choice(PEPTIDES) for _ in range(n)]
    kind = rng.choice([*LABELS, "residue", "mutation", "masked"])
    labels = [_label(kind, sequence, rng) for sequence in texts]
    given: dict[str, list] = {
        "label": labels,
        "own": [f"g{i}" for i in range(n)],
        "part": [rng.choice(["train", "Valid", "test ", "fit"]) for _ in range(n)],
        "changes": [_changes(sequence, rng) for sequence in texts],
    }
    emptied: dict[int, str] = {}
    for i in range(n):
        odd = rng.random()
        column = rng.choice(["label", "own", "part"])
        if odd < 0.15 and not (kind == "signs" and column == "label"):
            given[column][i] = rng.choice([*MISSING, None])
            emptied[i] = column
    unsure: set[int] = set()
    for i in range(n):
        if i not in emptied and rng.random() < 0.05:
            given[rng.choice(["label", "changes"])][i] = text(rng)
            unsure.add(i)
    arguments: dict[str, str | None] = {"label": "label", "group": "own", "mutations": None}
    arguments |= {"split": rng.choice(["part", None]), "kind": rng.choice([None, "class", "regression"])}
    if kind in ("mutation", "masked"):
        arguments |= {"kind": kind, "mutations": "changes" if kind == "mutation" else None}
    wrong = {i for i, column in emptied.items() if column != "part" or arguments["split"]}
    table = pl.DataFrame({"index": range(n), "name": [None] * n, "sequence": texts, **given}, strict=False)
    return table, arguments, set(range(n)) - wrong - unsure, wrong


def _label(kind: str, sequence: str, rng: Random) -> str:
    if kind in LABELS:
        return rng.choice(LABELS[kind])
    if kind == "residue":
        return "".join(rng.choice("01") for _ in sequence)
    return str(rng.randrange(1, len(sequence) + 1)) if kind == "masked" else rng.choice(LABELS["number"])


def _changes(sequence: str, rng: Random) -> str:
    sites = rng.sample(range(len(sequence)), rng.randrange(1, 3))
    others = ["CNSI".replace(sequence[i], "") for i in sites]
    return rng.choice(":,; ").join(
        f"{sequence[i]}{i + 1}{rng.choice(other)}" for i, other in zip(sites, others, strict=True)
    )
