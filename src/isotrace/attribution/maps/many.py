"""Maps of many pairs as one: mean recovery of every class, component, window and layer, with intervals by sequence."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from isotrace.attribution.maps.pair import ANSWER, CAUSE, EVERY, NULL, MapSettings, Pair
from isotrace.attribution.maps.recovery import COMPONENTS, recovery
from isotrace.stats.bootstrap import group_weights, intervals


@dataclass(frozen=True, eq=False)
class One:
    """The map of one pair, of `classes` in this order: `recovered [components, windows, classes, layers]`."""

    pair: Pair
    classes: tuple[str, ...]
    recovered: np.ndarray


def one_map(pair: Pair) -> One:
    """Also of all tokens together and of random spans, their mean."""
    own = [*pair.classes.values()]
    found = recovery(pair, [*own, tuple(range(pair.clean.ids.shape[1])), *pair.nulls])
    classes, parts = [*pair.classes, EVERY], [found[:, :, : len(own) + 1]]
    if pair.nulls:
        classes.append(NULL)
        parts.append(found[:, :, len(own) + 1 :].mean(2, keepdims=True))
    return One(pair, tuple(classes), np.concatenate(parts, 2))


@dataclass(frozen=True, eq=False)
class Maps:
    """`ones`: maps of the pairs that were kept; `sequences[i]`: the sequence of pair i, by a name."""

    ones: Sequence[One]
    sequences: Sequence[str]
    settings: MapSettings

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Cause and answer first, all tokens and random spans last."""
        found = {name for one in self.ones for name in one.classes}
        named = dict.fromkeys(name for one in self.ones for name in one.classes if name not in (EVERY, NULL))
        order = [*(n for n in (CAUSE, ANSWER) if n in found), *(n for n in named if n not in (CAUSE, ANSWER))]
        return (*order, *(name for name in (EVERY, NULL) if name in found))

    @cached_property
    def values(self) -> np.ndarray:
        """R float64 `[pairs, components, windows, classes, layers]`; NaN where a pair has no such class."""
        shape = self.ones[0].recovered.shape
        found = np.full((len(self.ones), *shape[:2], len(self.classes), shape[3]), np.nan)
        for row, one in zip(found, self.ones, strict=True):
            row[:, :, [self.classes.index(name) for name in one.classes]] = one.recovered
        return found

    @cached_property
    def weights(self) -> np.ndarray:
        """`[1 + draws, pairs]`: the pairs as they are, then draws of whole sequences."""
        return group_weights(self.sequences, self.settings.n_bootstrap, (self.settings.seed, 12))

    def means(self, values: np.ndarray, pairs: np.ndarray | None = None) -> np.ndarray:
        """Mean over the pairs in which it is defined, `[1 + draws, …]` of `values [pairs, …]`; `pairs` bool: over these
        alone."""
        weights, flat = self.weights if pairs is None else self.weights * pairs, values.reshape(len(values), -1)
        known = np.isfinite(flat)
        with np.errstate(invalid="ignore"):
            mean = (weights @ np.where(known, flat, 0.0)) / (weights @ known)
        return mean.reshape(-1, *values.shape[1:])

    def bounds(self, draws: np.ndarray) -> np.ndarray:
        """95 % intervals `[2, …]` of `means`; NaN where a single sequence is mapped."""
        one = len({*self.sequences}) < 2
        return np.full((2, *draws.shape[1:]), np.nan) if one else intervals(draws[1:])

    def peak(self, pairs: np.ndarray) -> int:
        """The layer at which the residual stream at the cause recovers most, over some pairs (bool)."""
        mean = self.means(self.values[:, [*COMPONENTS].index("residual"), 0, self.classes.index(CAUSE)], pairs)[0]
        return int(mean.argmax())
