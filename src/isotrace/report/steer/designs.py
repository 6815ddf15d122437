"""Designs of a trial as rows, and some of them drawn beside their starts."""

from difflib import SequenceMatcher
from typing import Any

import numpy as np
import polars as pl

from isotrace.datasets.annotated import read
from isotrace.domains.domain import Domain, Look, Reading
from isotrace.probing.validity import nearest
from isotrace.steering.trials.arm import Arm, judged
from isotrace.steering.trials.trial import Trial
from isotrace.subjects.subject import Subject

DRAWN = 6


def designs_of(found: Trial, arm: Arm) -> pl.DataFrame:
    """After the first round, where the generator shows it, and after the last. `similarity`: Tanimoto of the domain's
    fingerprints of start and design, null where either has none."""
    rows, first = [], () if arm.designs is None else arm.designs.first
    values = [*judged(found.judge, first).tolist(), *arm.values.tolist()]
    for row, value in zip((*first, *arm.rows), values, strict=True):
        start = found.starts[row.start]
        rows.append(
            {"dose": arm.dose, "start": row.start, "round": row.round, "from": start, "sequence": row.sequence,
             "valid": row.valid, "why": row.why, "judged": value if row.valid else None,
             "similarity": similarity(found.domain, start, row.sequence) if row.valid else None}
        )  # fmt: skip
    schema = {"dose": pl.Float64, "start": pl.Int64, "round": pl.Int64, "from": pl.String, "sequence": pl.String,
              "valid": pl.Boolean, "why": pl.String, "judged": pl.Float64, "similarity": pl.Float64}  # fmt: skip
    return pl.DataFrame(rows, schema=schema)


def similarity(domain: Domain, one: str, other: str) -> float | None:
    try:
        domain.check(one)
        prints = np.asarray(domain.fingerprints([one, other]), np.float64)
    except ValueError:
        return None
    return float(nearest(prints, np.arange(2))[0])


def drawn(found: Trial, subject: Subject) -> list[dict[str, Any]]:
    """Of the first starts: drawn, beside the first valid design of the claimed dose with what is new in it marked."""
    best, shown = found.best, []
    if best is None or subject.objective == "causal":
        return shown
    for start, text in enumerate(found.starts):
        pairs = zip(best.rows, best.values.tolist(), strict=True)
        row, value = next(((r, v) for r, v in pairs if r.start == start and r.valid), (None, None))
        if row is None or len(shown) == DRAWN:
            continue
        before, after = (read(subject, found.domain, one)[1] for one in (text, row.sequence))
        new = changed(before, after)
        shown.append(
            {"start": found.domain.draw_elements(before, {}, Look(small=True)), "text": text,
             "design": found.domain.draw_elements(after, dict.fromkeys(new, 1.0), Look(small=True, scale=1.0)),
             "sequence": row.sequence, "judged": value, "changed": len(new)}
        )  # fmt: skip
    return shown


def changed(before: Reading, after: Reading) -> list[int]:
    """Elements of `after` written by tokens that do not stand in `before` in the same order."""
    texts = [[unit.text for unit in reading.units] for reading in (before, after)]
    kept = {b + i for _, b, n in SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks() for i in range(n)}
    return sorted({e for place, written in enumerate(after.elements) if place not in kept for e in written})
