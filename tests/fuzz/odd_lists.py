"""Lists of sequences: one a line, FASTA, and values in memory."""

from random import Random
from typing import Any

from odd import MISSING, ODD, PROTEINS, REACTIONS, SMILES, Case, damaged, text


def lines(rng: Random) -> Case:
    known = rng.choice([SMILES, REACTIONS, PROTEINS])
    n, end = rng.randrange(1, 9), rng.choice(["\n", "\r\n", "\r"])
    written, right, wrong = [], {}, set()
    for i in range(n):
        kind = rng.random()
        if kind < 0.6:
            name = rng.choice(["", f"r{i}", "two words", "größe"])
            right[i] = (rng.choice(known), {"name": name or None})
            written.append(right[i][0] + (rng.choice(" \t") if name else "") + name + rng.choice(["", " "]))
        elif kind < 0.8:
            wrong.add(i)
            written.append(rng.choice(MISSING))
        else:
            written.append(rng.choice([x for x in ODD if not set(x) & set("\r\n")]))
    while written and not written[-1].strip():  # blank lines at the end are no rows
        written.pop()
        wrong.discard(len(written))
    body = end.join(written)
    head = rng.choice(["", f"SMILES name{end}", f"smiles{end}", "\ufeff"])
    content = (head + body + rng.choice(["", end, end * 3])).encode()
    if rng.random() < 0.3:
        return Case("a.smi", damaged(content, rng), None)
    return Case(rng.choice(["a.smi", "a.txt", "a.SMILES"]), content, len(written), right, wrong)


def fasta(rng: Random) -> Case:
    n, end = rng.randrange(1, 9), rng.choice(["\n", "\r\n", "\r"])
    parts, right, wrong = [], {}, set()
    for i in range(n):
        sequence = rng.choice(PROTEINS)
        name, more = rng.choice([(f"r{i}", ""), (f"sp|P{i}|X", " Some protein OS=x"), ("", ""), ("é", "")])
        body = end.join(sequence[k : k + 5] for k in range(0, len(sequence), 5)) if rng.random() < 0.5 else sequence
        if rng.random() < 0.2:
            body = rng.choice([x for x in MISSING if x != "?"])
            wrong.add(i)
        elif rng.random() < 0.2:
            body = text(rng).replace(">", "x").replace("\n", "")
        else:
            right[i] = (sequence, {"name": name or None})
        parts.append(f">{name}{more}{end}{body}{end}")
    content = "".join(parts).encode()
    if rng.random() < 0.3:
        return Case("a.fasta", damaged(content, rng), None)
    return Case(rng.choice(["a.fasta", "a.fa", "a.FAA"]), content, n, right, wrong)


def values(rng: Random) -> tuple[list[Any], dict[int, str], set[int]]:
    """Cells of a list; those that must be read as what; those that must be rejects."""
    cells, right, wrong = [], {}, set()
    for i in range(rng.randrange(1, 9)):
        kind = rng.random()
        if kind < 0.5:
            right[i] = rng.choice(SMILES + REACTIONS + PROTEINS)
            cells.append(f" {right[i]} " if rng.random() < 0.2 else right[i])
        elif kind < 0.8:
            wrong.add(i)
            cells.append(
                rng.choice([*MISSING, None, 3, 1.5, float("nan"), True, b"CC", ["C"], object(), {"a": 1}, 2**90])
            )
        else:
            cells.append(text(rng))
    return cells, right, wrong
