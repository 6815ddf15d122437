"""The levels of a Matryoshka dictionary: what each knows, whether later features stand below earlier ones, absorption.

A level is what one prefix adds to the one before. Concepts are those that labels name (`benchmark.labelers.Builtin`),
and one concept implies another where `IMPLIES` of its tokens carry that as well.

1. levels      share of the features that fire which have a label, and AUROC of what their labels predict on sequences
               they were not made from (see `benchmark.grade`)
2. hierarchy   child and parent: the child in a later level, cosine of their decoders > `COSINE`, parent fires on
               `INSIDE` of what the child fires on. Does the child's concept imply the parent's? Against pairs whose
               parent is another labelled feature of its level that fires about as often
3. absorption  where the concept of a parent holds and a child fires whose concept implies it: share on which the parent
               is silent, less the same where its concept holds and no child fires (Chanin et al. 2024,
               arXiv:2409.14507, who first describe absorption)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse
from scipy.stats import binomtest

from isotrace.annotation.benchmark.grade import area
from isotrace.annotation.benchmark.ground import Ground
from isotrace.base.errors import InputError
from isotrace.stats.bootstrap import mean_interval
from isotrace.stats.permutation import p_values

COSINE, INSIDE, IMPLIES, LEAST, ALIKE = 0.3, 0.9, 0.9, 20, 10
"""See the module; `LEAST`: tokens a share is taken of; `ALIKE`: features that a random parent is drawn from."""


@dataclass(frozen=True, eq=False)
class Layered:
    """One layer of a dictionary. `activations`: CSR `[tokens, features]` ≥ 0 on the sequences of `ground`; `decoders`
    float `[features, d]`; `prefixes`: ascending, the last is the number of features; `concepts`: the one that each
    feature is labelled with, or None; `graded`: bool `[sequences]` that no label was made from."""

    ground: Ground
    activations: sparse.csr_matrix
    decoders: np.ndarray
    prefixes: tuple[int, ...]
    concepts: tuple[str | None, ...]
    graded: np.ndarray

    def __post_init__(self) -> None:
        n = self.activations.get_shape()[1]
        if not self.prefixes or self.prefixes[-1] != n or len(self.concepts) != n or len(self.decoders) != n:
            raise InputError(
                f"{n} features, {len(self.concepts)} labels, {len(self.decoders)} decoders and prefixes "
                f"{list(self.prefixes)} do not fit: give a Matryoshka dictionary, and a label or None of each feature."
            )

    @cached_property
    def level(self) -> np.ndarray:
        """int64 `[features]`."""
        return np.searchsorted(self.prefixes, np.arange(self.prefixes[-1]), side="right")

    @cached_property
    def fires(self) -> sparse.csc_matrix:
        """float32 `[tokens, features]`, 0 and 1."""
        found = sparse.csc_matrix(self.activations > 0, dtype=np.float32)
        found.eliminate_zeros()
        return found

    @cached_property
    def n_fired(self) -> np.ndarray:
        return np.asarray(self.fires.sum(axis=0)).ravel()

    @cached_property
    def together(self) -> np.ndarray:
        """float32 `[features, features]`: tokens on which both fire."""
        return sparse.csr_matrix(self.fires.T @ self.fires).toarray()

    @cached_property
    def cosine(self) -> np.ndarray:
        """`[features, features]` of the decoders; 0 with one of length 0."""
        length = np.linalg.norm(self.decoders, axis=1, keepdims=True)
        unit = self.decoders / np.where(length > 0, length, 1)
        return unit @ unit.T

    @cached_property
    def labelled(self) -> np.ndarray:
        return np.asarray([name is not None for name in self.concepts])

    @cached_property
    def implied(self) -> np.ndarray:
        """bool `[features, features]`: the concept of the row implies that of the column; False without one."""
        names = [c.name for c in self.ground.table.token_concepts]
        matrix = self.ground.matrix
        both = sparse.csr_matrix(matrix @ matrix.T).toarray()
        size = np.diag(both)
        graph = both >= IMPLIES * np.maximum(size, 1)[:, None]
        at = np.asarray([names.index(name) if name is not None else -1 for name in self.concepts])
        return graph[at[:, None], at[None]] & self.labelled[:, None] & self.labelled[None]

    @cached_property
    def close(self) -> np.ndarray:
        """bool `[children, parents]`: later level, cosine of decoders, both labelled and firing often enough."""
        enough = self.labelled & (self.n_fired >= LEAST)
        later = self.level[:, None] > self.level[None]
        return later & (self.cosine > COSINE) & enough[:, None] & enough[None]


def levels(layer: Layered, seed: int) -> list[dict[str, Any]]:
    """A row per level; intervals of shares exact, of AUROCs over features."""
    rows, tokens = [], layer.ground.table.token_rows(np.flatnonzero(layer.graded))
    tokens = tokens[~layer.ground.special[tokens]]
    dense = layer.fires[tokens]
    for i, prefix in enumerate(layer.prefixes):
        own = np.flatnonzero((layer.level == i) & (layer.n_fired > 0))
        named = own[layer.labelled[own]]
        ends = binomtest(len(named), len(own)).proportion_ci(method="exact") if len(own) else None
        scores = []
        for feature in named:
            on = dense[:, [feature]].toarray().ravel() > 0
            scores.append(area(layer.ground.carries(str(layer.concepts[feature]))[tokens].astype(float), on))
        known = np.asarray(scores)[~np.isnan(scores)] if scores else np.zeros(0)
        rows.append({
            "level": i, "prefix": prefix, "features": int((layer.level == i).sum()), "alive": len(own),
            "labelled": len(named) / len(own) if len(own) else None,
            "labelled_ci": (np.nan, np.nan) if ends is None else (float(ends.low), float(ends.high)),
            "density": float(layer.n_fired[own].mean() / layer.ground.table.n_tokens) if len(own) else None,
            "auroc": float(known.mean()) if len(known) else None, "auroc_ci": mean_interval(known, seed),
        })  # fmt: skip
    return rows


def hierarchy(layer: Layered, seed: int, n_draws: int = 500) -> dict[str, Any]:
    """Share of child–parent pairs whose concepts stand in that order too, its null and p; None without a pair."""
    inside = layer.together >= INSIDE * np.maximum(layer.n_fired, 1)[:, None]
    child, parent = np.nonzero(layer.close & inside)
    row: dict[str, Any] = {
        "pairs": len(child),
        "implied": None,
        "implied_ci": (np.nan, np.nan),
        "null": None,
        "p": None,
    }
    if not len(child):
        return row
    rng, others = np.random.default_rng((seed, 1)), _alike(layer)
    hits = layer.implied[child, parent]
    null = np.stack([
        layer.implied[child, [others[p][int(rng.integers(len(others[p])))] for p in parent.tolist()]].mean()
        for _ in range(n_draws)
    ])  # fmt: skip
    ends = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="exact")
    p = float(p_values(np.asarray(hits.mean()), null))
    implied_ci = float(ends.low), float(ends.high)
    return row | {"implied": float(hits.mean()), "implied_ci": implied_ci, "null": float(null.mean()), "p": p}


def _alike(layer: Layered) -> dict[int, np.ndarray]:
    """Of every labelled feature that fires, the `ALIKE` others of its level that fire about as often; itself where it
    is the only one."""
    found = {}
    for feature in np.flatnonzero(layer.labelled & (layer.n_fired >= LEAST)).tolist():
        same = (layer.level == layer.level[feature]) & layer.labelled & (layer.n_fired >= LEAST)
        same[feature] = False
        near = np.abs(np.log(np.maximum(layer.n_fired, 1)) - np.log(layer.n_fired[feature]))
        order = np.flatnonzero(same)[np.argsort(near[same], kind="stable")]
        found[feature] = order[:ALIKE] if len(order) else np.asarray([feature])
    return found


def absorption(layer: Layered, seed: int) -> dict[str, Any]:
    """Means over parents with intervals; NaN for none: `absorbed` and, where no child fires, `silent`."""
    absorbed, silent = [], []
    related = layer.close & layer.implied
    for parent in np.flatnonzero(related.any(0)):
        holds = layer.ground.carries(str(layer.concepts[parent]))
        children = np.asarray(layer.fires[:, np.flatnonzero(related[:, parent])].sum(axis=1)).ravel() > 0
        quiet = layer.fires[:, [parent]].toarray().ravel() == 0
        parts = [holds & children, holds & ~children]
        if all(part.sum() >= LEAST for part in parts):
            absorbed.append(quiet[parts[0]].mean())
            silent.append(quiet[parts[1]].mean())
    row: dict[str, Any] = {"parents": len(absorbed)}
    for name, values in (("absorbed", absorbed), ("silent", silent), ("more", np.subtract(absorbed, silent))):
        found = np.asarray(values, dtype=np.float64)
        row |= {name: float(found.mean()) if len(found) else np.nan, f"{name}_ci": mean_interval(found, seed)}
    return row


def concepts_of(labels: Sequence[Any], names: Sequence[str]) -> tuple[str | None, ...]:
    """What labels of `benchmark.labelers` name, None for an abstention or what is no concept of `names`."""
    known = set(names)
    return tuple(label.text if not label.abstains and label.text in known else None for label in labels)
