"""What else moves at a dose: counts of tokens, and the numbers by which the domain describes a sequence (logP, TPSA,
rings; charge, hydropathy), each in standard deviations of the data."""

from collections.abc import Callable, Sequence

import numpy as np

from isotrace.datasets.annotated import read
from isotrace.domains.domain import Domain
from isotrace.steering.contrast import Contrast, counts
from isotrace.steering.trials.arm import Arm
from isotrace.subjects.subject import Subject

SEQUENCES = 200
"""Of the data, over which the spread of a property is taken."""


def drift(subject: Subject, domain: Domain, contrast: Contrast, plain: Arm, steered: Arm) -> dict[str, float]:
    """Confound → mean change from `plain` to `steered`, see `_moved`."""

    def numbers(text: str) -> list[float]:
        found = counts(subject, domain, text)
        return [found[name] for name in contrast.confounds]

    spread = np.asarray([column.std() for column in contrast.confounds.values()])
    return dict(zip(contrast.confounds, _moved(numbers, spread, plain, steered).tolist(), strict=True))


def property_drift(
    subject: Subject, domain: Domain, contrast: Contrast, plain: Arm, steered: Arm, seed: int
) -> dict[str, float]:
    """The same of every number that the domain gives of a whole sequence. Those that are the same, or not known, in all
    of a sample of the data are left out."""
    at = [i for i, concept in enumerate(domain.concepts) if concept.kind == "value"]

    def numbers(text: str) -> np.ndarray:
        return domain.label(read(subject, domain, text)[1]).numbers[at]

    rows = np.random.default_rng((seed, 22)).permutation(len(contrast))[:SEQUENCES]
    sample = np.asarray([numbers(contrast.examples[i].text) for i in rows]).reshape(len(rows), len(at))
    spread = np.sqrt(_mean((sample - _mean(sample)) ** 2))  # NaN where nothing is known
    moved = _moved(numbers, spread, plain, steered)
    return {domain.concepts[at[i]].name: float(moved[i]) for i in np.flatnonzero(spread > 0)}


def _moved(
    numbers: Callable[[str], Sequence[float] | np.ndarray], spread: np.ndarray, plain: Arm, steered: Arm
) -> np.ndarray:
    """`[n]` in units of `spread [n]`: over starts with valid designs of both, the mean of the steered ones less that of
    the plain ones. A number that is not known of a design is left out, and NaN where that leaves none."""
    known: dict[str, np.ndarray] = {}
    means: list[dict[int, np.ndarray]] = []
    for arm in (plain, steered):
        rows: dict[int, list[np.ndarray]] = {}
        for row in arm.rows:
            if row.valid:
                if row.sequence not in known:
                    known[row.sequence] = np.asarray(numbers(row.sequence), np.float64)
                rows.setdefault(row.start, []).append(known[row.sequence])
        means.append({start: _mean(np.stack(found)) for start, found in rows.items()})
    both = [means[1][start] - means[0][start] for start in means[1] if start in means[0]]
    units = np.where(spread > 0, spread, np.nan)
    return _mean(np.stack(both)) / units if both else np.full(len(spread), np.nan)


def _mean(rows: np.ndarray) -> np.ndarray:
    """`[n]` of `[rows, n]`, over what is known; NaN where nothing is."""
    known = np.isfinite(rows)
    total, n = np.where(known, rows, 0.0).sum(0), known.sum(0)
    return np.divide(total, n, out=np.full(rows.shape[1], np.nan), where=n > 0)
