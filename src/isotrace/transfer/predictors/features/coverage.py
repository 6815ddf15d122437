"""How many of the parts that tell a task's labels are tracked by a single feature already."""

from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from isotrace.base.errors import InputError
from isotrace.stats.permutation import q_values
from isotrace.stats.splits import deal
from isotrace.transfer.predictors.evidence import Evidence
from isotrace.transfer.predictors.features.bases import features_in, of_each_basis
from isotrace.transfer.predictors.probes.forest import TREES

ENVIRONMENTS, LEAST_F1, LEVEL = 20, 0.5, 0.05


@of_each_basis("coverage", source="ours", needs=("domain", "texts"))
def coverage(evidence: Evidence, basis: str) -> float:
    """Share of the 20 environments that matter most to a forest on fingerprints which one feature tracks: F1 of
    presence 0.5 or more and q below 0.05 where it was not chosen.

    The feature, pooled by its maximum, and its threshold are chosen on half of the sequences, whole groups apart.
    """
    pooled = features_in(evidence, basis)
    peaks, there = pooled[:, pooled.shape[1] // 2 :], environments(evidence)
    chosen = deal(evidence.groups.tolist(), (0.5, 0.5), evidence.seed) == 0
    fires = best_features(peaks, there, chosen)
    f1, p = judged(fires[~chosen], there[~chosen])
    q = q_values(p, np.ones(len(p), dtype=bool), len(p))
    return float(((f1 >= LEAST_F1) & (q < LEVEL)).mean())


def environments(evidence: Evidence) -> np.ndarray:
    """bool `[N, environments]`: which of the most important ones a sequence has; fewer where fewer matter."""
    domain, texts = evidence.domain, evidence.texts
    assert domain is not None
    x = getattr(domain, "count_fingerprints", domain.fingerprints)(texts)
    kind: Any = RandomForestRegressor if evidence.kind == "regression" else RandomForestClassifier
    trees = kind(TREES, max_features="sqrt", random_state=evidence.seed, n_jobs=-1).fit(x, evidence.y)
    best = np.argsort(-trees.feature_importances_, kind="stable")[:ENVIRONMENTS]
    best = best[trees.feature_importances_[best] > 0]
    if not len(best):
        raise InputError("no environment of these sequences tells their labels")
    return x[:, best] > 0


def best_features(peaks: np.ndarray, there: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """bool `[N, environments]`: where the feature with the best F1 on `chosen`, of `peaks [N, F]`, is at its best
    threshold or above; nowhere where none is ever active with the environment."""
    x, y = peaks[chosen], there[chosen]
    order = np.argsort(-x, axis=0, kind="stable")
    ranked = np.take_along_axis(x, order, 0)
    # a threshold lies at an activation, behind the last of those that are equal
    allowed = (ranked > 0) & np.concatenate([ranked[1:] < ranked[:-1], np.ones((1, x.shape[1]), dtype=bool)])
    rank = np.arange(1, len(x) + 1)[:, None]
    found = np.zeros(there.shape, dtype=bool)
    for e, present in enumerate(y.T):
        hits = present[order].cumsum(0)
        f1 = np.where(allowed, 2 * hits / (rank + present.sum()), 0.0)
        place, feature = np.unravel_index(int(f1.argmax()), f1.shape)
        if f1[place, feature] > 0:
            found[:, e] = peaks[:, feature] >= ranked[place, feature]
    return found


def judged(fires: np.ndarray, there: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(F1, p) of every column of bool `[n, environments]`: the chance of as many hits if both were independent
    (Fisher's exact test, one-sided)."""
    from scipy.stats import hypergeom  # a second to import, which not every command should take

    hits, fired, present = (fires & there).sum(0), fires.sum(0), there.sum(0)
    f1 = 2 * hits / np.maximum(fired + present, 1)
    return f1, np.asarray(hypergeom.sf(hits - 1, len(fires), present, fired))
