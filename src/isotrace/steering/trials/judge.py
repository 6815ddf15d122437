"""Judges of designs, which know no language model: the property itself, where it can be computed, or a random forest on
the domain's fingerprints, fitted on sequences that neither the edit nor its dose has seen, and checked on others before
it is believed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

from isotrace.domains.domain import Domain
from isotrace.stats.bootstrap import group_weights, interval
from isotrace.stats.metrics import METRICS
from isotrace.steering.contrast import Contrast

TREES = 200


@dataclass(frozen=True)
class Exact:
    """What `compute` says of a text is the property."""

    compute: Callable[[str], float]
    metric: str = "exact"
    checked: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float64 `[n]`."""
        return np.asarray([self.compute(text) for text in texts], np.float64)


@dataclass(frozen=True, eq=False)
class Judge:
    """`forest` says the number of the label, or the share of the positive class. `checked`: `metric` (Spearman, or
    AUROC) on held-out sequences, with its interval over groups. `ends`: the shortest and the longest text it has seen,
    which fix the form of fingerprints that depends on lengths."""

    domain: Domain
    forest: Any
    metric: str
    checked: tuple[float, float, float]
    ends: tuple[str, str]

    @classmethod
    def fitted(cls, domain: Domain, seen: Contrast, held: Contrast, seed: int, n_draws: int = 1_000) -> Self:
        """On `seen`, checked on `held`."""
        texts = sorted((e.text for e in seen.examples), key=len)
        kind: Any = RandomForestClassifier if seen.classes else RandomForestRegressor
        forest = kind(TREES, max_features="sqrt", random_state=seed, n_jobs=1)
        prints = np.asarray(domain.fingerprints([e.text for e in seen.examples]))
        forest.fit(prints, seen.side > 0 if seen.classes else seen.values)
        metric = "auroc" if seen.classes else "spearman"
        plain = cls(domain, forest, metric, (np.nan, np.nan, np.nan), (texts[0], texts[-1]))
        said = plain([e.text for e in held.examples])
        truth = (held.side > 0).astype(np.float64) if held.classes else held.values
        draws = METRICS[metric](said[:, None], truth, group_weights(held.groups.tolist(), n_draws, (seed, 15)))
        return cls(domain, forest, metric, (float(draws[0]), *interval(draws[1:])), plain.ends)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """float64 `[n]`; NaN where fingerprints of these lengths are of another form."""
        if not texts:
            return np.zeros(0)
        x = np.asarray(self.domain.fingerprints([*self.ends, *texts]))[2:]
        if x.shape[1] != self.forest.n_features_in_:
            return np.full(len(texts), np.nan)
        return self.forest.predict_proba(x)[:, 1] if self.metric == "auroc" else self.forest.predict(x)
