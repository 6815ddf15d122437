"""Cross-validated score of a random forest that knows no language model: the bar for every checkpoint of a task."""

import numpy as np

from isotrace.base.errors import InputError
from isotrace.probing.crossed import forest
from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.predictor import predictor

TREES = 500


@predictor("forest_fingerprints", source="usual practice", passes=0, needs=("domain", "texts"))
def of_fingerprints(evidence: Evidence) -> float:
    """500 trees on the domain's fingerprints (molecules: counts of ECFP4), in the folds of `probe`: the same for all
    checkpoints."""
    assert evidence.domain is not None
    counted = getattr(evidence.domain, "count_fingerprints", evidence.domain.fingerprints)
    return _worth(evidence, counted(evidence.texts))


@predictor("forest_descriptors", source="usual practice", passes=0, needs=("domain", "texts"))
def of_descriptors(evidence: Evidence) -> float:
    """The same on what the domain says of whole sequences (molecules: mass, logP, …), missing numbers as such."""
    domain = evidence.domain
    assert domain is not None
    whole = [i for i, concept in enumerate(domain.concepts) if concept.kind != "token"]
    if not whole:
        raise InputError(f"the domain {domain.name} has no descriptors of whole sequences")
    rows = []
    for text in (text.strip() for text in evidence.texts):
        reading = domain.read(text, [text], [(0, len(text))])
        rows.append(domain.label(reading).numbers[whole])
    x = np.asarray(rows)
    x = x[:, np.isfinite(x).any(0)]
    # trees see order alone, and `forest` leaves out columns that are hardly ever above 0
    return _worth(evidence, x - np.nanmin(x, 0))


def _worth(evidence: Evidence, x: np.ndarray) -> float:
    return evidence.worth(forest(x, evidence.y, evidence.kind, evidence.folds, evidence.seed, TREES))
